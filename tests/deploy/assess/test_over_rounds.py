"""Attacks on several rounds of a run: who is a member, which rounds can hold a target, and what is written."""

import pytest
import torch
from local_grid import local_simulate
from safetensors.numpy import load_file

from metaleak.attacks.attack import Reconstructions
from metaleak.deploy.assess.applicability import reason_against
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.observe import Attacked, RecordedRounds
from metaleak.deploy.assess.truth import ask, ask_over, chances_of_a_draw
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.server import Record

SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 2, "shots": 2, "queries": 2},
    "partition": {"learners": 10, "held_out": 0.4},
    "model": {"name": "mlp", "hidden": [16]},
    "server": {"rounds": 4},
    "evaluation": {"tasks": 2, "queries": 2},
    "attacks": [{"name": "span", "knows_defenses": True}],
    "targets": {"members": 40, "non_members": 40, "rounds": 4},
}
REDRAWN = {"partition": {"learners": 10, "held_out": 0.4, "examples_per_class": 8}}
UNEQUAL = {
    "partition": {
        "learners": 10,
        "held_out": 0.4,
        "examples_per_class": 4,
        "most_examples_per_class": 7,
        "dirichlet": 1.0,
        "overlap": 0.25,
    }
}
SEVERAL = {
    "task": {"ways": 2, "shots": 2, "queries": 2, "episodes_per_message": 3},
    "partition": {"learners": 10, "held_out": 0.4, "examples_per_class": 8},
}
SECURE = {"defenses": [{"name": "secure-aggregation"}]}
FEW = {"server": {"rounds": 4, "fraction": 0.5}}


def rounds_of(path, **changes):
    experiment = experiment_from({**SMALL, **changes}, "test")
    run = local_simulate(experiment, path / "run")
    record = Record(run.record)
    there = {round: record.mean_of(round) or record.learners(round) for round in record.rounds}
    attacked = Attacked(record, record.rounds, sorted(set().union(*there.values())), experiment.federation())
    truth = ask_over(attacked.federation, there, "query", experiment.targets)
    attack = experiment.attacks[0].build("attacks")
    return run, experiment, there, truth, RecordedRounds(attacked, attack, truth, torch.device("cpu"))


def test_lasting_sets_have_the_same_targets_in_one_round_and_in_many(tmp_path):
    _, experiment, there, truth, _ = rounds_of(tmp_path)
    once = ask(experiment.federation(), there[1], 1, "query", experiment.targets)
    assert all(torch.equal(value, getattr(truth, name)) for name, value in vars(once).items())


def test_what_learners_drew_in_any_round_is_a_member_and_its_chance_is_known(tmp_path):
    _, experiment, there, truth, rounds = rounds_of(tmp_path, **REDRAWN)
    federation = experiment.federation()
    for place in truth.member.nonzero().flatten().tolist():
        learner = int(truth.learner[place])
        drawn = [federation.learner(learner).drawn(round).query for round in there]
        assert any(bool((one == truth.example[place]).any()) for one in drawn)
    assert not rounds[0].fixed_sets
    assert rounds[0].chances.tolist() == [2 / 8] * len(rounds[0].rows)
    assert chances_of_a_draw(experiment_from(SMALL, "test").federation(), [3], "query").tolist() == [1]


def test_of_a_message_of_several_episodes_a_member_is_in_any_of_them(tmp_path):
    _, experiment, there, truth, rounds = rounds_of(tmp_path, **SEVERAL)
    federation = experiment.federation()
    for place in truth.member.nonzero().flatten().tolist():
        drawn = [federation.learner(int(truth.learner[place])).drawn(round) for round in there]
        assert any(bool((one.query == truth.example[place]).any()) for one in drawn)
    observation = rounds[0].observation
    assert (observation.episodes, observation.shots, observation.queries) == (3, 6, 6)
    assert rounds[0].chances.tolist() == pytest.approx([1 - (1 - 2 / 8) ** 3] * len(rounds[0].rows))
    refused = experiment_from({**SMALL, **SEVERAL, "attacks": [], "targets": {}}, "test")
    assert "one episode per message" in reason_against(refused, Plugin(name="likelihood-ratio"))
    with pytest.raises(ValueError, match="one episode per message"):
        experiment_from({**SMALL, **SEVERAL, "defenses": [{"name": "record-level", "epsilon": 8.0}]}, "test")


def test_where_shards_overlap_a_member_may_be_anothers_and_a_non_member_is_nobodys(tmp_path):
    _, experiment, _, truth, rounds = rounds_of(tmp_path, **UNEQUAL)
    federation = experiment.federation()
    shards = [set(shard.examples.flatten().tolist()) for shard in federation.split().shards]
    holders = [sum(image in shard for shard in shards) for image in truth.example.tolist()]
    assert all((count > 0) == member for count, member in zip(holders, truth.member.tolist(), strict=True))
    assert max(holders) == 2
    sizes = [shard.examples.shape[1] for shard in federation.split().shards]
    assert len(set(sizes)) > 1
    assert rounds[0].chances.tolist() == pytest.approx([1 if size == 4 else 2 / size for size in sizes])
    targets = truth.targets(federation, list(range(10)))
    assert torch.equal(rounds[0].chances_of(targets), rounds[0].chances[truth.learner])


def test_a_round_holds_the_targets_of_those_learners_that_answered_in_it(tmp_path):
    _, experiment, there, truth, rounds = rounds_of(tmp_path, **FEW)
    targets = truth.targets(experiment.federation(), sorted(set().union(*there.values())))
    for number, learners in there.items():
        round = rounds[number - 1]
        assert (round.number, len(learners)) == (number, 5)
        answered = torch.tensor([learner in learners for learner in truth.learner.tolist()])
        assert torch.equal(round.positions >= 0, answered)
        places, asked = round.asked(targets)
        assert torch.equal(torch.tensor(learners)[asked.rows], truth.learner[places])
        assert torch.equal(asked.positions, truth.position[places])


@pytest.mark.parametrize(
    "changes", [{}, REDRAWN, FEW, UNEQUAL, SEVERAL, {"defenses": [{"name": "secure-aggregation"}]}]
)
def test_a_run_is_attacked_over_its_rounds(tmp_path, changes):
    run, experiment, *_ = rounds_of(tmp_path, **changes)
    found = assess(run, experiment, experiment.attacks[0])
    assert (found.round, found.rounds) == (1, 4)
    assert found.evaluation.auc.value > 0.6
    # Learners of one mean are one cluster.
    aggregated = "defenses" in changes
    assert found.mean_of == (10 if aggregated else 1)
    assert (found.evaluation.clusters == 1) == aggregated


def test_an_attack_that_sees_one_round_is_not_applicable_to_several():
    experiment = experiment_from(SMALL, "test")
    assert reason_against(experiment, experiment.attacks[0]) is None
    reason = "span uses one round only, but targets.rounds is 4: knows_defenses must be true"
    assert reason_against(experiment, Plugin(name="span")).startswith(reason)
    recorded = experiment_from({**SMALL, "record": {"rounds": 1}}, "test")
    assert reason_against(recorded, Plugin(name="span")) is None


def test_an_inversion_takes_rounds_together_where_sets_last():
    dlg = Plugin(name="dlg")
    assert reason_against(experiment_from(SMALL, "test"), dlg) is None
    three = {"learners": 10, "held_out": 0.4, "classes_per_learner": 3}
    for partition in (REDRAWN["partition"], UNEQUAL["partition"], three):
        redrawn = experiment_from({**SMALL, "partition": partition}, "test")
        assert reason_against(redrawn, dlg).startswith("dlg needs the same sets in all 4 rounds (targets.rounds)")


@pytest.mark.parametrize("changes", [{}, FEW])
def test_an_inversion_rebuilds_and_answers_from_all_rounds(tmp_path, changes):
    run, experiment, *_ = rounds_of(tmp_path, **changes)
    told = experiment.targets.model_copy(update={"learners": 10})
    asked = experiment.model_copy(update={"targets": told})
    attack = Plugin(name="inverting-gradients", iterations=60)
    found = assess(run, asked, attack)
    assert (found.rounds, found.measured[0].name) == (4, "PSNR")
    assert found.evaluation.auc.value > 0.6


@pytest.mark.parametrize(("changes", "rounds"), [({}, 4), (REDRAWN, 1), (UNEQUAL, 1)])
def test_what_is_rebuilt_is_of_all_rounds_where_sets_last_and_else_of_the_first(tmp_path, changes, rounds):
    run, experiment, *_ = rounds_of(tmp_path, **changes)
    learners = experiment.targets.model_copy(update={"learners": 1})
    found = assess(run, experiment.model_copy(update={"targets": learners}), Plugin(name=f"{__name__}:GrayLasting"))
    assert found.rounds == rounds


def test_what_is_rebuilt_is_of_learners_that_answered_in_the_round_that_is_seen(tmp_path):
    run, _, there, _, _ = rounds_of(tmp_path, **FEW)
    asked = experiment_from({**SMALL, **FEW, "targets": {"rounds": 4, "learners": 10}}, "test")
    found = assess(run, asked, Plugin(name=f"{__name__}:GraySets"), "gray")
    assert found.headline.name == "PSNR"
    rebuilt = load_file(run.path / "attacks" / "gray" / "reconstructions.safetensors")
    assert set(rebuilt["learner"].tolist()) == set(there[1])


class GraySets:
    """Takes every image for a gray one."""

    asks = "query"
    requires = frozenset()

    def reconstruct(self, observation, seed, progress=None):
        learners = len(next(iter(observation.gradients.values())))
        return Reconstructions(torch.full((learners, 4, *observation.input_shape), 0.5), torch.zeros(learners, 4))


class GrayLasting(GraySets):
    """The same of one set that all rounds are about."""

    def reconstruct_over_rounds(self, rounds, seed, progress=None):
        assert rounds[0].fixed_sets
        learners = len(rounds[0].rows)
        return Reconstructions(torch.full((learners, 4, 1, 8, 8), 0.5), torch.zeros(learners, 4))
