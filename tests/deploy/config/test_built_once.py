"""What an experiment names is built once, and kept for everything that asks for it."""

import copy
from collections import Counter

import pytest
from local_grid import local_simulate

from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.commands import attack_command
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.suites.plan import plan

SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 3},
    "partition": {"learners": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 1},
    "evaluation": {"tasks": 5, "queries": 3},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}, {"name": "support", "iterations": 3, "fit": 0}],
    "targets": {"members": 6, "non_members": 6},
}


@pytest.fixture
def builds(monkeypatch):
    """Count what is built from here on, by kind and name."""
    counted: Counter[tuple[str, str]] = Counter()
    whole = Plugin.build

    def counting(self, kind):
        counted[kind, self.name] += 1
        return whole(self, kind)

    monkeypatch.setattr(Plugin, "build", counting)
    return counted


def test_planning_a_suite_builds_each_plugin_once_a_cell_at_most(tmp_path, builds):
    axes = {"defenses": [[], ["sign"], [{"name": "noise", "scale": {"each": [0.1, 1.0]}}]], "ways": [2, 3]}
    planned = plan(Suite(base={**SMALL, "attacks": "query"}, grid=axes).experiments(), tmp_path)
    assert len(planned.cells) == 8
    assert builds == {
        ("datasets", "digits"): 8,
        ("models", "mlp"): 8,
        ("rules", "maml"): 8,
        ("defenses", "sign"): 2,
        ("defenses", "noise"): 4,
        ("attacks", "query"): 8,
    }


def test_simulating_and_attacking_builds_each_plugin_once_an_experiment(tmp_path, builds):
    experiment = experiment_from(SMALL, "small")
    run = local_simulate(experiment, tmp_path / "run")
    for attack in experiment.attacks:
        assess(run, experiment, attack)
    assert builds.total() == 5
    again = run.experiment()
    assess(run, again, again.attacks[0], "again")
    assert builds.total() == 10


def test_the_attack_command_builds_what_it_attacks_with_and_no_other_attack(tmp_path, builds):
    local_simulate(experiment_from(SMALL, "small"), tmp_path / "run")
    before = builds.total()
    attack_command(tmp_path / "run", "query", ("iterations=2", "targets.members=5"), (), None, as_json=True)
    assert builds.total() - before == 4
    assert builds["attacks", "support"] == 1


def test_a_changed_experiment_has_what_it_names_now():
    experiment = experiment_from(SMALL, "small")
    changed = experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"hidden": [4]}),
            "rule": Plugin(name="fomaml"),
            "defenses": (Plugin(name="sign"),),
        }
    )
    federation = changed.federation()
    assert federation.model.hidden == (4,)
    assert federation.rule.order == 1
    assert len(federation.defenses) == 1
    assert changed.resolved()["model"]["hidden"] == [4]
    assert experiment.federation().model.hidden == (8,)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_what_was_built_is_neither_compared_nor_sent_along(copied):
    built, other = Plugin(name="mlp", hidden=[8]), Plugin(name="mlp", hidden=[8])
    sent = built.__getstate__()
    thing = built.built("models")
    assert built.built("models") is thing
    assert built == other == copied(built)
    assert built != Plugin(name="mlp", hidden=[9])
    assert hash(built) == hash(other)
    assert built.__getstate__() == sent == other.__getstate__()
    assert copied(built).built("models") == thing
