"""`metaleak audit defense`: what it prints, and with which code it ends."""

import json

import pytest

from metaleak.deploy.cli import main

RECORD_LEVEL = "metaleak.defenses:RecordLevel"
FEW = ("--trials", "400")


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(["audit", "defense", *arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def test_one_json_document_says_what_is_promised_and_what_is_proven(capsys):
    code, out, _ = call(capsys, "gaussian", "--set", "clip=1", "--set", "epsilon=4", *FEW, "--rounds", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["accounted"] == pytest.approx(4)
    assert 0 < found["lower_bound"] <= found["accounted"]
    assert (found["confidence"], found["rounds"], found["defense"]["clip"]) == (0.95, 2, 1)


def test_a_line_says_it_otherwise_and_the_rule_can_be_set(capsys):
    code, out, _ = call(
        capsys, RECORD_LEVEL, "--set", "epsilon=8", "--set", "rule.inner_steps=2", "--asks", "support", *FEW
    )
    assert code == 0
    assert "accounted epsilon 8.000 over 1 round, proven" in out


def test_one_run_with_many_canaries_is_enough(capsys):
    code, out, _ = call(capsys, RECORD_LEVEL, "--set", "epsilon=8", "--trials", "600", "--one-run", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["one_run"], found["trials"]) == (True, 600)
    assert 1 < found["any_mechanism"] < found["lower_bound"] <= found["accounted"]


def test_more_than_is_promised_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr(
        "metaleak.defenses.gaussian_mechanism.GaussianMechanism.sensitivity", property(lambda self: self.clip)
    )
    code, out, err = call(capsys, "gaussian", "--set", "clip=1", "--set", "epsilon=4", *FEW, "--json")
    assert code == 1
    assert json.loads(out)["lower_bound"] > 4
    assert "more than the accounted 4" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noise",), "audit defense noise: name: Noise has no guarantee"),
        (("gaussian", "--set", "epsilon=4"), "audit defense gaussian: clip: Field required"),
        (("gaussian", "--set", "clip=1", "--set", "epsilon=4", "--trials", "3"), "audit: trials: Input should be"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(capsys, arguments, message):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
