"""A study from its file to its results, at small size: on real images, in this process."""

import json

import pyarrow.parquet
import pytest
import torch

from metaleak.clients.models import MLP
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.pretraining import shadow_models
from metaleak.deploy.pretraining.command import run_study
from metaleak.deploy.pretraining.finetuning import ReleasedModel, mechanism
from metaleak.deploy.pretraining.reading import read_study, study_from
from metaleak.deploy.pretraining.shadow_models import answers_of, in_turn
from metaleak.deploy.pretraining.study import PrivateSteps
from metaleak.deploy.report.page import write_report
from metaleak.deploy.results.reading import read_run

ATTACKS = "metaleak.attacks.pretraining"
PLAIN = {
    "pool": {"data": "mnist-5k", "classes": [0, 1, 2], "examples": 100},
    "downstream": {"data": "mnist-5k", "classes": [5, 6, 7], "examples": 120},
    "model": {"name": "mlp", "hidden": [16]},
    "pretraining": {"epochs": 30, "batch": 25},
    "finetunings": {"head": {"training": {"epochs": 3}}},
    "models": 6,
    "victims": 3,
    "points": 60,
    "attacks": [f"{ATTACKS}.gaussian_ratio:GaussianRatio", f"{ATTACKS}.white_box:WhiteBoxLiRA"],
    "engine": {"device": "cpu"},
}


def study(**changes):
    return study_from({**PLAIN, **changes}, "study.yaml")


def trained(monkeypatch):
    """Count the models that are trained from here on, pretraining and finetuning apart."""
    counts = {"pretrained": 0, "finetuned": 0}
    for kind, name in (("pretrained", "train"), ("finetuned", "finetuned")):
        inner = getattr(shadow_models, name)

        def counted(model, starts, *rest, kind=kind, inner=inner):
            counts[kind] += len(starts)
            return inner(model, starts, *rest)

        monkeypatch.setattr(shadow_models, name, counted)
    return counts


def test_a_study_is_made_attacked_and_read_like_a_run(tmp_path):
    results = run_study(study(), tmp_path, here=True)
    assert set(results) == {"GaussianRatio", "WhiteBoxLiRA"}
    found = results["WhiteBoxLiRA"]
    assert found.evaluation.members + found.evaluation.non_members == 3 * 60
    assert found.evaluation.clusters == 3
    assert found.asks == "start"
    assert found.released.start_accuracy > found.released.start_accuracy_outside
    run = read_run(tmp_path)
    assert run.state.status == "done"
    assert run.config["finetuning"]["moves"] == "head"
    assert run.config["defenses"] == []
    read = {attack.name: attack for attack in run.attacks}
    assert read["WhiteBoxLiRA"].result == found
    assert len(read["GaussianRatio"].scores) == 180
    columns = pyarrow.parquet.read_table(tmp_path / "attacks/GaussianRatio/scores.parquet").column_names
    assert columns == ["victim", "example", "member", "score"]
    assert json.loads((tmp_path / "attacks/GaussianRatio/attack.json").read_text())["knows"]
    date, version = run.state.started[:10], run.state.versions["metaleak"]
    top = " ".join(write_report(tmp_path).read_text().partition("<nav")[0].split())
    assert f"{date} · metaleak {version} · <code>metaleak pretraining study.yaml</code>" in top


def test_nothing_is_trained_twice_and_a_kill_costs_the_model_at_hand(tmp_path, monkeypatch):
    counts = trained(monkeypatch)
    calls = []

    def killed(job, make=shadow_models.make):
        calls.append(job)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return make(job)

    with monkeypatch.context() as once:
        once.setattr(shadow_models, "make", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(), tmp_path, here=True)
    assert counts == {"pretrained": 3, "finetuned": 3}
    assert read_run(tmp_path).state.status == "interrupted"
    whole = run_study(study(), tmp_path, here=True)
    state = read_run(tmp_path).state
    assert (state.status, state.seed) == ("done", 0)
    run_study(study(), tmp_path, here=True)
    assert read_run(tmp_path).state == state, "a call that makes no model changes no date"
    assert counts == {"pretrained": 6, "finetuned": 6}
    # Another finetuning trains classifiers alone; a damaged model is made again.
    other = {"head": {"training": {"epochs": 3}}, "longer": {"training": {"epochs": 5}}}
    run_study(study(finetunings=other), tmp_path, here=True)
    assert counts == {"pretrained": 6, "finetuned": 12}
    assert run_study(study(), tmp_path, here=True)["GaussianRatio"].evaluation == whole["GaussianRatio"].evaluation
    key = study().answers_key(2, "head")
    (tmp_path / "models" / f"{key}.safetensors").write_bytes(b"damaged")
    run_study(study(), tmp_path, here=True)
    assert counts == {"pretrained": 6, "finetuned": 13}


def test_a_start_is_asked_once_for_all_finetunings_and_a_thousand_inputs_at_a_time(tmp_path, monkeypatch):
    passes = []
    answers = ReleasedModel._answers

    def counted(self, inputs):
        passes.append(len(inputs))
        return answers(self, inputs)

    monkeypatch.setattr(ReleasedModel, "_answers", counted)
    several = {f"epochs {epochs}": {"training": {"epochs": epochs}} for epochs in (1, 2, 3)}
    shadow_models.make(shadow_models.ModelJob(study(finetunings=several), (0,), tmp_path))
    # The start: the points and the pool. Each finetuned model: the points and the downstream examples.
    assert passes == [60, 100, *[60, 120] * 3]
    model = MLP(hidden=())
    parameters = model.initialize((1, 2, 2), 3, torch.Generator().manual_seed(0))
    inputs = torch.rand(2100, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    passes.clear()
    found = ReleasedModel(model, parameters).predict(inputs)
    assert passes == [1000, 1000, 100]
    assert torch.allclose(found, model(parameters, inputs).double().softmax(1), atol=1e-6)


def test_models_made_side_by_side_are_those_made_alone(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for number in range(6):
        shadow_models.make(shadow_models.ModelJob(study(), (number,), alone))
    shadow_models.make(shadow_models.ModelJob(study(), tuple(range(6)), together))
    for one, other in zip(answers_of(study(), alone, "head"), answers_of(study(), together, "head"), strict=True):
        assert torch.allclose(one.probabilities, other.probabilities, atol=1e-5)
        assert torch.equal(one.member, other.member)


def test_a_change_reaches_into_what_the_file_gives_by_its_short_name(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("pool: {data: mnist-5k}\nmodel: mlp\n")
    found = read_study(file, ("pool.data.name=digits", "model.hidden=[4]", "models=9"))
    assert (found.pool.data.name, found.model.settings, found.models) == ("digits", {"hidden": [4]}, 9)


def test_every_victim_has_shadows_of_its_own_and_is_none_of_them():
    turns = dict(in_turn(study(shadows=4)))
    assert list(turns) == [0, 1, 2]
    for victim, shadows in turns.items():
        assert len(set(shadows)) == 4
        assert victim not in shadows


@pytest.mark.parametrize("moves", ["head", "all"])
def test_private_finetuning_is_accounted_and_runs(tmp_path, moves):
    private = {"epsilon": 2.0, "steps": 4}
    results = run_study(study(finetunings={"dp": {"moves": moves, "private": private}}), tmp_path, here=True)
    assert results["GaussianRatio"].released.epsilon == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_the_accounted_epsilon_is_that_of_another_accountant(epsilon):
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    steps = PrivateSteps(epsilon=epsilon, steps=100)
    made = mechanism(steps)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    # The library's multiplier is in units of one record's norm; replacing one moves the sum by twice that.
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(2 * made.multiplier("all")), steps.steps))
    assert made.epsilon_after(1) == pytest.approx(epsilon, rel=1e-6)
    assert accountant.get_epsilon(steps.delta) == pytest.approx(epsilon, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"victims": 7}, "victims: must be at most the 6 models, got 7"),
        ({"shadows": 6}, "shadows: must be at most 5, all other models, got 6"),
        ({"attacks": ["nothing"]}, "attacks.0.name: unknown name 'nothing'"),
        ({"model": "mpl"}, "model.name: unknown name 'mpl'"),
        ({"queries": {"access": 0}}, "queries.access"),
        ({"finetunings": {}}, "finetunings: "),
        (
            {"finetunings": {"dp": {"private": {"epsilon": 1.0}, "statistics": "finetuning"}}},
            "statistics: must be pretraining with private steps",
        ),
        ({"finetunings": {"../../x": {}}}, "finetunings: a name must be .* got '../../x'"),
        ({"finetunings": {".x": {}}}, "finetunings: a name must be .* got '.x'"),
        ({"finetunings": {"a\nb": {}}}, "finetunings: a name must be "),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(changes, problem):
    with pytest.raises(WrongUsage, match=problem) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)
