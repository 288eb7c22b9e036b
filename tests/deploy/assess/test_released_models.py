"""Personal models of a run that is done, asked about the images of other learners."""

import pytest
import torch

from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.released_models import _points, _trained, held_by_any
from metaleak.deploy.assess.truth import used_in_training
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.results.reading import read_run
from metaleak.deploy.simulate.launch import simulate_here
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server import MetaLearner

PERSONAL_MODELS = "metaleak.attacks.pretraining.personal_models:PersonalModels"
PLAIN = {
    "data": "digits",
    "task": {"ways": 3, "shots": 2, "queries": 2},
    "partition": {"learners": 20, "held_out": 0.1, "non_members": 0.4},
    "model": {"name": "mlp", "hidden": [16]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 2, "queries": 1},
    "attacks": [],
    "targets": {"members": 40, "non_members": 60},
    "engine": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "run"
    return simulate_here(experiment_from(PLAIN, "test"), path)


def attacked(run, name, **settings):
    told = []
    plugin = Plugin(name=PERSONAL_MODELS, **{"releases": 2, "shadows": 4, **settings})
    found = assess(run, run.experiment(), plugin, name, lambda done, total: told.append((done, total)))
    return found, told


def test_personal_models_are_asked_without_a_record_and_the_federations_are_simulated_once(run):
    found, told = attacked(run, "first")
    assert (found.evaluation.members, found.evaluation.non_members) == (40, 60)
    assert found.knows == "classes, own examples"
    assert found.asks == "start"
    assert told[-1] == (4, 4)
    shadows = sorted((run.path / "shadows").iterdir())
    assert len(shadows) == 4
    before = [(one / "run.json").stat().st_mtime_ns for one in shadows]
    again, _ = attacked(run, "again")
    assert again.evaluation == found.evaluation
    assert before == [(one / "run.json").stat().st_mtime_ns for one in shadows]
    assert {attack.name for attack in read_run(run.path).attacks} == {"first", "again"}
    # A shadow is dealt anew.
    own = run.experiment().federation()
    other = RunDirectory.open(shadows[0]).experiment().federation()
    assert not held_by_any(own).equal(held_by_any(other))
    assert int(held_by_any(own).sum()) == 20 * 3 * 4


@pytest.mark.parametrize("examples_per_class", [None, 6], ids=["sets last", "sets are drawn anew"])
def test_members_are_what_the_training_used_and_not_what_learners_hold(examples_per_class):
    partition = {**PLAIN["partition"], "examples_per_class": examples_per_class, "learners": 10}
    server = {"rounds": 3, "fraction": 0.3}
    experiment = experiment_from({**PLAIN, "partition": partition, "server": server}, "test")
    federation = experiment.federation()
    used, held = used_in_training(experiment), held_by_any(federation)
    assert not (used & ~held).any()
    sampled = set().union(*(MetaLearner(10, fraction=0.3, seed=experiment.seed).sample(round) for round in (1, 2, 3)))
    assert 3 <= len(sampled) < 10
    shards = federation.split().shards
    idle = torch.cat([shards[learner].examples.flatten() for learner in set(range(10)) - sampled])
    busy = torch.cat([shards[learner].examples.flatten() for learner in sampled])
    assert not used[idle].any()
    assert used[busy].all() == (examples_per_class is None)
    asked = _points(federation, [min(sampled)], experiment)
    assert asked.member.any()
    assert torch.equal(used[asked.examples], asked.member)
    assert not held[asked.examples[~asked.member]].any()
    with pytest.raises(ValueError, match="no image of a learner that publishes nothing was used"):
        _points(federation, sorted(sampled), experiment)


def test_a_learner_that_never_answers_has_no_members():
    experiment = experiment_from({**PLAIN, "faults": {"dropout": 1.0}}, "test")
    assert not used_in_training(experiment).any()


def test_a_run_that_shares_a_part_and_a_clipping_norm_is_asked_about_its_whole_model(tmp_path):
    adaptive = {"name": "gaussian", "clip": 1.0, "epsilon": 50, "adapt": {}}
    own = {**PLAIN, "shares": ["layer1.*"], "defenses": [adaptive]}
    simulated = simulate_here(experiment_from(own, "test"), tmp_path / "run")
    federation = simulated.experiment().federation()
    trained, initial = _trained(simulated, federation), federation.initial_parameters()
    assert set(trained) == {"layer1.weight", "layer1.bias", "head.weight", "head.bias"}
    assert trained["head.weight"].equal(initial["head.weight"])
    assert not trained["layer1.weight"].equal(initial["layer1.weight"])
    found, _ = attacked(simulated, "shared", shadows=3)
    assert (found.evaluation.members, found.evaluation.non_members) == (40, 60)


@pytest.mark.parametrize(
    "defense", [{"name": "noise", "place": "inner", "scale": 1.0}, {"name": "record-level", "epsilon": 8}]
)
def test_defenses_of_the_inner_loop_are_refused_in_one_line(tmp_path, defense):
    plain = {**PLAIN, "server": {"rounds": 1}, "defenses": [defense]}
    defended = simulate_here(experiment_from(plain, "test"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"^defenses.0: one of the place '(inner|example)'") as caught:
        attacked(defended, "inner")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_asked_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(ValueError, match="releases: must be below the 20 learners"):
        attacked(run, "many", releases=20)
    undone = RunDirectory.create(tmp_path / "undone", experiment_from(PLAIN, "test"))
    with pytest.raises(ValueError, match="the simulation is not done"):
        attacked(undone, "early")
