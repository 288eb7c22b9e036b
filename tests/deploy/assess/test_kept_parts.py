"""An attack that is interrupted goes on from the parts that it had finished."""

import numpy as np
import pytest
import torch
from local_grid import local_simulate

from metaleak.attacks import InversionFromTarget
from metaleak.attacks.attack import Answers, Reconstructions
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.observe import RecordedRounds
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.results.reading import read_attack

SMALL = {
    "data": {"name": "digits"},
    "task": {"ways": 2},
    "partition": {"learners": 10},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 2, "queries": 2},
    "attacks": [{"name": "query", "iterations": 2, "fit": 0, "chunk": 4}],
    "targets": {"members": 20, "non_members": 20},
}


@pytest.fixture
def run(tmp_path):
    return local_simulate(experiment_from(SMALL, "test"), tmp_path / "run")


def counted(monkeypatch, stop_after=None):
    """Return the list of parts' sizes that are really computed; the call after so many is interrupted."""
    computed, real = [], InversionFromTarget.__call__

    def call(self, observation, targets, *rest):
        if len(computed) == stop_after:
            raise Interrupted("interrupted")
        computed.append(len(targets.rows))
        return real(self, observation, targets, *rest)

    monkeypatch.setattr(InversionFromTarget, "__call__", call)
    return computed


def found(run, name="query"):
    return read_attack(run.path / "attacks" / name).scores


def test_the_same_command_goes_on_and_ends_as_if_never_interrupted(run, monkeypatch):
    experiment = experiment_from(SMALL, "test")
    (attack,) = experiment.attacks
    with monkeypatch.context() as patch:
        first = counted(patch, stop_after=7)
        with pytest.raises(
            Interrupted, match="interrupted; 7 parts of the attack are kept, the same command goes on"
        ):
            assess(run, experiment, attack)
    assert first == [4, 4, 4, 4, 4, 4, 4]
    assert not (run.path / "attacks" / "query" / "attack.json").exists()
    with monkeypatch.context() as patch:
        rest = counted(patch)
        assess(run, experiment, attack)
    assert rest == [4, 4, 4]
    assess(run, experiment, attack, "afresh")
    assert np.array_equal(found(run), found(run, "afresh"))
    names = {path.name for path in (run.path / "attacks" / "query").iterdir()}
    assert names == {"attack.json", "scores.parquet", "gallery.safetensors"}


@pytest.mark.parametrize("change", ["attacks.0.iterations=3", "targets.non_members=19", "seed=1"])
def test_another_configuration_takes_up_nothing(run, monkeypatch, change):
    experiment = experiment_from(SMALL, "test")
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        with pytest.raises(Interrupted):
            assess(run, experiment, experiment.attacks[0])
    other = experiment_from(SMALL, "test", [change])
    with monkeypatch.context() as patch:
        computed = counted(patch)
        assess(run, other, other.attacks[0], "query")
    assert len(computed) == 10


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_a_damaged_part_is_computed_again(run, monkeypatch, tmp_path, damage):
    experiment = experiment_from(SMALL, "test")
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        with pytest.raises(Interrupted):
            assess(run, experiment, experiment.attacks[0])
    parts = sorted((run.path / "attacks" / "query").iterdir())
    assert len(parts) == 3
    if damage is None:
        (tmp_path / "elsewhere").write_bytes(parts[0].read_bytes())
        parts[0].unlink()
        parts[0].symlink_to(tmp_path / "elsewhere")
    else:
        parts[0].write_bytes(damage)
    with monkeypatch.context() as patch:
        computed = counted(patch)
        assess(run, experiment, experiment.attacks[0])
    assert len(computed) == 8


OVER_ROUNDS = {
    **SMALL,
    "task": {"ways": 2, "shots": 2, "queries": 2},
    "partition": {"learners": 6, "held_out": 0.4},
    "server": {"rounds": 5},
    "targets": {"members": 20, "non_members": 20, "rounds": 5},
}


SPAN = {"name": "span", "knows_defenses": True}
ALIGNMENT = {"name": "alignment", "samples": 20, "stand_ins": 1, "shadows": 4}


@pytest.mark.parametrize(("attacking", "place"), [(SPAN, "shared"), (SPAN, "query"), (ALIGNMENT, "shared")])
def test_an_attack_over_rounds_goes_on_from_the_rounds_that_it_had_seen(tmp_path, monkeypatch, attacking, place):
    noisy = {"name": "noise", "place": place, "scale": 0.5}
    experiment = experiment_from({**OVER_ROUNDS, "defenses": [noisy], "attacks": [attacking]}, "test")
    run, (attack,) = local_simulate(experiment, tmp_path / "run"), experiment.attacks
    computed, real, stop = [], RecordedRounds.kept, [3]

    def kept(self, at, find):
        def counted(round):
            if len(computed) == stop[0]:
                raise Interrupted("interrupted")
            computed.append(at)
            return find(round)

        return real(self, at, counted)

    monkeypatch.setattr(RecordedRounds, "kept", kept)
    with pytest.raises(Interrupted, match="3 parts of the attack are kept"):
        assess(run, experiment, attack)
    stop[0] = None
    assess(run, experiment, attack)
    assert computed == [0, 1, 2, 3, 4]
    assess(run, experiment, attack, "afresh")
    assert np.array_equal(found(run, attack.name), found(run, "afresh"))
    assert {path.name for path in (run.path / "attacks" / attack.name).iterdir()} == {"attack.json", "scores.parquet"}


class Both:
    """Asks for membership and reconstructs."""

    asks = "query"
    requires = frozenset()
    calls, interrupted = 0, False

    def __call__(self, observation, targets, seed, progress=None):
        type(self).calls += 1
        return Answers(torch.arange(len(targets.rows), dtype=torch.float64))

    def reconstruct(self, observation, seed, progress=None):
        if type(self).interrupted:
            raise Interrupted("interrupted")
        learners = len(next(iter(observation.gradients.values())))
        return Reconstructions(torch.full((learners, 2, *observation.input_shape), 0.5), torch.zeros(learners, 2))


def test_answers_are_kept_before_anything_is_rebuilt(run, monkeypatch):
    experiment = experiment_from(SMALL, "test")
    monkeypatch.setattr(Both, "interrupted", True)
    monkeypatch.setattr(Both, "calls", 0)
    with pytest.raises(Interrupted, match="1 parts of the attack are kept"):
        assess(run, experiment, Plugin(name=f"{__name__}:Both"), "both")
    Both.interrupted = False
    result = assess(run, experiment, Plugin(name=f"{__name__}:Both"), "both")
    assert Both.calls == 1
    assert [measure.name for measure in result.measured][:3] == ["PSNR", "mean squared error", "SSIM"]
