"""What an attack is shown, and what stands beside its scores: the epsilon promised, the one proved, the cost."""

import json
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from local_grid import local_simulate

from metaleak.attacks.attack import Answers
from metaleak.defenses import CLIP_NAME, AddedNoise, GaussianMechanism, gaussian_epsilon
from metaleak.deploy.assess import assessment
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.observe import Attacked, observe
from metaleak.deploy.assess.truth import ask
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.results.reading import read_attack
from metaleak.deploy.results.schema import Privacy, PrivacyViolation
from metaleak.server import MetaLearner, Record

GAUSSIAN = {"name": "gaussian", "clip": 0.5, "epsilon": 8.0}
SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 2},
    "partition": {"learners": 40},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 2, "queries": 2},
    "attacks": [{"name": "query", "iterations": 3, "fit": 0}],
    "targets": {"members": 80, "non_members": 80},
}
EVERYTHING = Plugin(name="metaleak.attacks.likelihood_ratio:LikelihoodRatio")


def simulated(path, **changes):
    experiment = experiment_from({**SMALL, **changes}, "test")
    return local_simulate(experiment, path / "run"), experiment


def test_under_secure_aggregation_every_learner_is_shown_the_one_mean(tmp_path):
    secure, experiment = simulated(tmp_path / "a", defenses=[{"name": "secure-aggregation"}], faults={"dropout": 0.2})
    plain, _ = simulated(tmp_path / "b", faults={"dropout": 0.2})
    federation, attack = experiment.federation(), experiment.attacks[0].build("attacks")
    record = Record(secure.record)
    answered = record.mean_of(1)
    assert 0 < len(answered) < 40
    some = answered[::3]
    shown = observe(Attacked(record, [1], some, federation), 1, attack)
    own = observe(Attacked(Record(plain.record), [1], answered, federation), 1, attack)
    assert (shown.mean_of, own.mean_of) == (len(answered), 1)
    for name, value in shown.gradients.items():
        assert value.shape == (len(some), *shown.parameters[name].shape)
        torch.testing.assert_close(value[1], own.gradients[name].mean(dim=0))
        assert value.stride(0) == 0  # one copy, whatever the number of learners
    assess(secure, experiment, experiment.attacks[0])
    found = read_attack(secure.path / "attacks" / "query").result
    assert (found.evaluation.members, found.evaluation.non_members) == (2 * len(answered), 80)
    assert set(json.loads((secure.path / "attacks/query/attack.json").read_text())) >= {"privacy", "cost"}
    targets = experiment.targets.model_copy(update={"learners": 1})
    rebuilt = assess(secure, experiment.model_copy(update={"targets": targets}), Plugin(name="spear"))
    assert rebuilt.mean_of == found.mean_of > 1
    # One noise for all, and so one observation.
    assert found.privacy.lower_bound == 0


def test_an_attack_that_only_reconstructs_is_judged_by_the_nearest_reconstruction_too(tmp_path):
    changes = {"model": {"name": "mlp", "hidden": [64]}, "targets": {**SMALL["targets"], "learners": 12}}
    run, experiment = simulated(tmp_path, **changes)
    found = assess(run, experiment, Plugin(name="spear"))
    assert found.by_nearest
    assert [one.name for one in found.headlines] == ["PSNR", "AUC"]
    assert found.headline.value > 40
    # Of the 12 learners that are rebuilt, two query images each, and images of their classes that nobody holds.
    assert (found.evaluation.members, found.evaluation.non_members) == (24, 80)
    assert found.evaluation.auc.value > 0.9
    assert found.privacy.accounted is None
    scores = pq.read_table(run.path / "attacks/spear/scores.parquet").to_pandas()
    assert scores.learner.nunique() == 12
    assert scores.score.tolist() == (-scores.distance).tolist()
    assert read_attack(run.path / "attacks/spear").result == found


def test_reconstructions_are_measured_where_no_image_is_held_by_nobody(tmp_path):
    changes = {
        "model": {"name": "mlp", "hidden": [64]},
        "partition": {"learners": 10, "non_members": 0.0},
        "targets": {**SMALL["targets"], "learners": 2},
    }
    run, experiment = simulated(tmp_path, **changes)
    found = assess(run, experiment, Plugin(name="spear"))
    assert found.evaluation is None
    assert [one.name for one in found.headlines] == ["PSNR"]


def test_the_known_clipping_norm_is_the_one_that_was_sent_in_the_round(tmp_path):
    run, experiment = simulated(tmp_path, defenses=[{**GAUSSIAN, "adapt": {}}])
    record, attack = Record(run.record), Plugin(name="span", knows_defenses=True).build("attacks")
    attacked = Attacked(record, [1, 2], [0, 1], experiment.federation())
    norms = [observe(attacked, round, attack).defenses[0].clip for round in (1, 2)]
    assert norms == pytest.approx([float(np.exp(record.sent(round)[CLIP_NAME])[0]) for round in (1, 2)])
    assert norms[0] == pytest.approx(0.5) != norms[1]


def test_without_secure_aggregation_rows_are_the_learners_own(tmp_path):
    plain, experiment = simulated(tmp_path)
    attack = experiment.attacks[0].build("attacks")
    shown = observe(Attacked(Record(plain.record), [1], [5, 3], experiment.federation()), 1, attack)
    learners, gradients = Record(plain.record).received(1)
    assert learners[3] == 3
    assert torch.equal(shown.gradients["head.bias"][1], torch.from_numpy(gradients["head.bias"][3]))
    assert shown.mean_of == 1


@pytest.mark.parametrize(("round", "releases"), [("first", 1), ("last", 2)])
def test_what_is_accounted_for_covers_every_round_up_to_the_last_that_is_attacked(tmp_path, round, releases):
    run, experiment = simulated(tmp_path, defenses=[GAUSSIAN], targets={**SMALL["targets"], "round": round})
    assess(run, experiment, experiment.attacks[0])
    found = read_attack(run.path / "attacks" / "query").result
    multiplier = experiment.federation().defenses[0].multiplier
    assert found.privacy.accounted == pytest.approx(gaussian_epsilon(multiplier, releases, 1e-5))
    assert (releases == 2) == (found.privacy.accounted == pytest.approx(8.0, rel=1e-6))
    assert found.privacy.accounted_run == pytest.approx(8.0, rel=1e-6)
    # Of 40 learners a member of the one half counts and a non-member of the other.
    rate = (0.05 / 12) ** (1 / 20)
    assert found.privacy.lower_bound <= found.privacy.ceiling
    assert found.privacy.gaussian_lower_bound <= found.privacy.gaussian_ceiling
    assert found.privacy.ceiling == pytest.approx(np.log((rate - 1e-5) / (1 - rate)))
    assert (found.privacy.delta, found.privacy.confidence) == (1e-5, 0.95)
    entries = 64 * 8 + 8 + 8 * 2 + 2
    assert (found.cost.bytes_per_learner, found.cost.dense_bytes) == (4 * entries, 4 * entries)


def test_without_a_guarantee_nothing_is_accounted_for_and_the_cost_is_that_of_the_last_defense(tmp_path):
    run, experiment = simulated(tmp_path, defenses=[{"name": "selection", "names": ["head.*"]}])
    assess(run, experiment, EVERYTHING, "everything")
    found = read_attack(run.path / "attacks" / "everything").result
    assert found.privacy.accounted is None
    # Of 40 learners a member of the one half counts and a non-member of the other, told apart without an error.
    rate = (0.05 / 12) ** (1 / 20)
    assert found.privacy.lower_bound == pytest.approx(np.log((rate - 1e-5) / (1 - rate)))
    assert found.privacy.one_run > found.privacy.lower_bound
    assert (found.cost.bytes_per_learner, found.cost.dense_bytes) == (4 * 18, 4 * (64 * 8 + 8 + 18))


def test_record_level_privacy_is_accounted_for_over_the_rounds_and_bounded_as_gaussian(tmp_path):
    private = {"name": "metaleak.defenses:RecordLevel", "epsilon": 8.0}
    run, experiment = simulated(tmp_path, rule={"name": "fomaml"}, defenses=[private])
    assess(run, experiment, experiment.attacks[0])
    found = read_attack(run.path / "attacks" / "query").result.privacy
    assert found.accounted < 8
    assert found.gaussian_lower_bound <= found.accounted, "the promise of an `ExampleMechanism`"
    assert experiment.federation().defenses[0].epsilon_after(1) == found.accounted


def test_noise_that_is_too_little_for_what_is_promised_is_a_violation_and_stays_on_disk(tmp_path, monkeypatch):
    run, experiment = simulated(tmp_path, defenses=[{**GAUSSIAN, "epsilon": 5000.0}])
    monkeypatch.setattr(GaussianMechanism, "epsilon_after", lambda self, releases: 0.125)
    with pytest.raises(PrivacyViolation, match=r"^the empirical epsilon [1-9.]+ \(95 % lower bound\) exceeds the "):
        assess(run, experiment, EVERYTHING, "everything")
    found = read_attack(run.path / "attacks" / "everything")
    assert found.result.privacy.violated
    assert found.result.privacy.accounted == 0.125 < found.result.privacy.lower_bound
    assert len(found.scores) == 160


def test_a_mechanism_that_promises_to_be_gaussian_gets_the_sharper_bound(tmp_path, monkeypatch):
    run, experiment = simulated(tmp_path, defenses=[{**GAUSSIAN, "epsilon": 5000.0}])
    assess(run, experiment, EVERYTHING, "everything")
    found = read_attack(run.path / "attacks" / "everything").result.privacy
    assert found.gaussian_lower_bound > found.lower_bound > 0
    # Between the two lies what only the sharper bound refutes.
    between = (found.gaussian_lower_bound + found.lower_bound) / 2
    monkeypatch.setattr(GaussianMechanism, "epsilon_after", lambda self, releases: between)
    with pytest.raises(PrivacyViolation, match=f"epsilon {found.gaussian_lower_bound:.4g} "):
        assess(run, experiment, EVERYTHING, "again")
    # The promise counts, not the class.
    monkeypatch.setattr(GaussianMechanism, "noise", lambda self: AddedNoise("laplace", self.standard_deviation))
    assess(run, experiment, Plugin(name="span"), "other")
    assert read_attack(run.path / "attacks" / "other").result.privacy.gaussian_lower_bound is None


def test_an_infinite_epsilon_is_no_guarantee_and_the_file_stays_json(tmp_path):
    run, experiment = simulated(tmp_path, defenses=[{"name": "gaussian", "clip": 1.0, "noise_multiplier": 0.0}])
    assess(run, experiment, EVERYTHING, "everything")
    text = (run.path / "attacks/everything/attack.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["privacy"]["accounted"] is None


def test_a_bound_below_what_is_promised_is_no_violation():
    told = {"delta": 1e-5, "confidence": 0.95}
    Privacy(accounted=1.0, lower_bound=1.0, **told).check()
    Privacy(accounted=None, lower_bound=100.0, **told).check()
    with pytest.raises(PrivacyViolation, match=r"3\.2 .* exceeds the accounted 1: a bug"):
        Privacy(accounted=1.0, lower_bound=3.2, **told).check()
    with pytest.raises(PrivacyViolation, match=r"2\.5 .* exceeds the accounted 1: a bug"):
        Privacy(accounted=1.0, lower_bound=0.5, gaussian_lower_bound=2.5, **told).check()


def test_an_audit_that_fails_does_so_before_the_attack_computes(tmp_path, monkeypatch):
    run, experiment = simulated(tmp_path)

    def fails(experiment, asks):
        raise ValueError("name: no canary is known")

    monkeypatch.setattr(assessment, "run_audit", fails)
    monkeypatch.setattr(assessment, "ask_membership", lambda *given: pytest.fail("the attack was made"))
    with pytest.raises(ValueError, match="no canary is known"):
        assess(run, experiment, EVERYTHING, "everything")


def test_a_damaged_privacy_is_named(tmp_path):
    run, experiment = simulated(tmp_path)
    assess(run, experiment, experiment.attacks[0])
    path = run.path / "attacks" / "query" / "attack.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "privacy": {**whole["privacy"], "lower_bound": -1}}))
    with pytest.raises(ValueError, match=r"privacy\.lower_bound"):
        read_attack(path.parent)
    del whole["privacy"], whole["cost"]
    path.write_text(json.dumps(whole))
    without = read_attack(path.parent).result
    assert (without.privacy, without.cost) == (None, None)


def test_the_rest_of_a_set_lacks_the_asked_image_and_the_candidates_are_the_two(tmp_path):
    run, experiment = simulated(tmp_path, task={"ways": 2, "queries": 3}, partition={"learners": 20})
    federation, attack = experiment.federation(), EVERYTHING.build("attacks")
    learners = list(range(20))
    truth = ask(federation, learners, 1, "query", experiment.targets)
    shown = observe(Attacked(Record(run.record), [1], learners, federation), 1, attack, truth)
    targets = truth.targets(federation, learners)
    held = federation.split()
    everyones = set(torch.cat([shard.examples.flatten() for shard in held.shards]).tolist())
    assert truth.member.any()
    assert not truth.member.all()
    for row, (learner, member) in enumerate(zip(truth.learner.tolist(), truth.member.tolist(), strict=True)):
        real = federation.learner(learner).episode(1).query_inputs
        slot = int(shown.rest.slots[row])
        assert slot // 3 == int(truth.position[row])
        assert not shown.rest.images[row, slot].any()
        others = [place for place in range(6) if place != slot]
        assert torch.equal(shown.rest.images[row, others], real[others])
        first, second = targets.examples[row], shown.rest.alternatives[row]
        assert torch.equal(first if member else second, real[slot])
        outsider = second if member else first
        assert not torch.equal(outsider, real[slot])
    assert not everyones & set(truth.example[~truth.member].tolist())


def test_learners_that_draw_anew_cannot_be_surrounded(tmp_path):
    run, experiment = simulated(
        tmp_path, partition={"learners": 10, "examples_per_class": 6}, targets={**SMALL["targets"], "rounds": 2}
    )
    with pytest.raises(ValueError, match="learners draw other episodes in round 1"):
        assess(run, experiment, EVERYTHING, "everything")


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 30), (0.2, None)])
def test_a_guarantee_is_set_up_for_the_rounds_in_which_a_learner_is_sampled(fraction, expected):
    plain = {**SMALL, "defenses": [GAUSSIAN], "server": {"rounds": 30, "fraction": fraction}}
    experiment = experiment_from(plain, "test")
    (made,) = experiment.federation().defenses
    if expected is None:
        server = MetaLearner(40, fraction=fraction, seed=0)
        drawn = [learner for round in range(1, 31) for learner in server.sample(round)]
        expected = max(drawn.count(learner) for learner in range(40))
        assert 6 < expected < 30
    assert made.releases == experiment.releases() == expected
    assert made.epsilon_after(expected) == pytest.approx(8.0, rel=1e-6)
    # What is written, and the key, know nothing of it.
    assert experiment.resolved()["defenses"][0]["releases"] is None
    assert experiment_from(experiment.resolved(), "again").simulation_key() == experiment.simulation_key()


def test_a_guarantee_for_fewer_rounds_than_a_learner_takes_part_in_is_refused():
    plain = {**SMALL, "defenses": [{"name": "secure-aggregation"}, {**GAUSSIAN, "releases": 1}]}
    with pytest.raises(ValueError, match=r"test: defenses\.1\.releases: .* 2 rounds, epsilon covers 1"):
        experiment_from(plain, "test")


def test_a_huge_run_is_not_counted_but_bounded():
    plain = {
        **SMALL,
        "defenses": [GAUSSIAN],
        "server": {"rounds": 200_000, "fraction": 0.1},
        "partition": {"learners": 100},
    }
    assert experiment_from(plain, "test").federation().defenses[0].releases == 200_000


class Elsewhere:
    """An attack that computes on any device, and says where its inputs were."""

    on_any_device = True
    asks = "query"
    requires = frozenset({"other set", "rest of the set", "both candidates"})
    seen: ClassVar[set[str]] = set()

    def __call__(self, observation, targets, seed, progress=None):
        rest = observation.rest
        given = [*observation.parameters.values(), *observation.gradients.values(), observation.known_support]
        given += [targets.examples, targets.rows, targets.positions, rest.images, rest.slots, rest.alternatives]
        self.seen.update(value.device.type for value in given)
        return Answers(torch.arange(len(targets.rows)).float())


class Here(Elsewhere):
    """The same without the promise."""

    on_any_device = False


@pytest.mark.parametrize(("attack", "device"), [(Elsewhere, "meta"), (Here, "cpu")])
@pytest.mark.parametrize("defenses", [[], [{"name": "secure-aggregation"}]])
def test_an_attack_that_can_is_given_everything_on_the_engines_device(
    tmp_path, monkeypatch, attack, device, defenses
):
    run, experiment = simulated(tmp_path, defenses=defenses)
    monkeypatch.setattr(assessment, "torch_device", lambda asked: torch.device("meta" if asked == "auto" else asked))
    monkeypatch.setattr(attack, "seen", set())
    assess(run, experiment, Plugin(name=f"{__name__}:{attack.__name__}"), "where")
    assert attack.seen == {device}


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(tmp_path, monkeypatch):
    run, experiment = simulated(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = experiment.engine.model_copy(update={"device": "cuda"})
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        assess(run, experiment.model_copy(update={"engine": engine}), experiment.attacks[0])
    assert not (run.path / "attacks" / "query").exists()
