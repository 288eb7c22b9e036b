"""A study in the words in which reports compare runs: what protects the start is a defense."""

import pytest

from metaleak.deploy.results.study_file import described_study

HEAD = {"moves": "head", "private": None}
PRIVATE = {"moves": "head", "private": {"epsilon": 2.0}}


@pytest.mark.parametrize(
    ("finetuning", "access", "defenses"),
    [
        (HEAD, "all", []),
        (PRIVATE, "all", [{"epsilon": 2.0, "name": "private-finetuning"}]),
        (HEAD, 1, [{"name": "cut-answers", "shown": 1}]),
        (
            PRIVATE,
            "label",
            [{"epsilon": 2.0, "name": "private-finetuning"}, {"name": "cut-answers", "shown": "label"}],
        ),
    ],
)
def test_private_steps_and_cut_answers_are_defenses_and_the_rest_is_the_setting(finetuning, access, defenses):
    plain = {"seed": 1, "finetunings": {"mine": finetuning}, "queries": {"augmented": 0, "access": access}}
    found = described_study(plain)
    assert found == {
        "seed": 1,
        "finetuning": {"moves": "head"},
        "queries": {"augmented": 0},
        "defenses": defenses,
    }


def test_several_finetunings_and_what_is_no_study_are_left_as_they_are():
    several = {"finetunings": {"one": HEAD, "two": PRIVATE}}
    assert described_study(several) == {**several, "defenses": []}
    for strange in ({"finetunings": [1]}, {"finetunings": {"one": 3}}, {"queries": "all"}):
        assert described_study(strange) == {**strange, "defenses": []}
