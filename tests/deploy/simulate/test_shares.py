"""What the learners of a federation share, and what is in no message."""

import pytest
import torch

from metaleak.attacks.attack import Targets
from metaleak.attacks.refusal import refusal
from metaleak.clients.models import MLP
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.observe import Attacked, observe
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.launch import simulate_here
from metaleak.deploy.simulate.record_size import record_bytes
from metaleak.server import Record

PLAIN = {
    "data": "digits",
    "task": {"ways": 3},
    "model": {"name": "mlp", "hidden": [8]},
    "partition": {"learners": 6},
    "server": {"rounds": 2},
    "evaluation": {"tasks": 4, "queries": 2},
    "engine": {"device": "cpu"},
    "attacks": [],
}


def test_what_is_not_shared_is_in_no_message_and_no_record(tmp_path):
    experiment = experiment_from({**PLAIN, "shares": ["head.*"]}, "here")
    run = simulate_here(experiment, tmp_path / "run")
    record = Record(run.record)
    assert set(record.sent(2)) == {"head.weight", "head.bias"}
    assert set(record.received(2)[1]) == {"head.weight", "head.bias"}
    # Two rounds of what was sent and of six replies: the weights of 8 units and the biases of 3 classes.
    assert record_bytes(experiment) == 4 * (3 * 8 + 3) * 2 * 7
    federation = experiment.federation()
    observation = observe(Attacked(record, [2], [0, 1], federation), 2, Plugin(name="span").built("attacks"))
    assert set(observation.gradients) == {"head.weight", "head.bias"}
    assert set(observation.parameters) == set(federation.initial_parameters())


def test_a_pattern_that_matches_no_parameter_is_refused_before_anything_runs(tmp_path):
    experiment = experiment_from({**PLAIN, "shares": ["layer9.*"]}, "here")
    with pytest.raises(ValueError, match=r"shares: no parameter is called 'layer9.\*'"):
        simulate_here(experiment, tmp_path / "run")


def test_everything_is_shared_by_default_and_runs_stored_before_are_still_the_same():
    plain, listed = experiment_from(PLAIN, "here"), experiment_from({**PLAIN, "shares": ["*"]}, "here")
    part = experiment_from({**PLAIN, "shares": ["layer1.*"]}, "here")
    assert plain.simulation_key() == listed.simulation_key() != part.simulation_key()


def test_an_attack_that_needs_all_gradients_is_not_applicable_where_some_are_shared():
    attack = Plugin(name="query").built("attacks")
    assert refusal(attack, MLP()) is None
    assert "needs the gradients of all parameters" in str(refusal(attack, MLP(), all_shared=False))


def test_the_span_test_needs_the_first_layer_alone(tmp_path):
    attack = Plugin(name="span").built("attacks")
    assert refusal(attack, MLP(), all_shared=False) is None
    for shares, refused in (["layer1.*"], False), (["head.*"], True):
        experiment = experiment_from({**PLAIN, "server": {"rounds": 1}, "shares": shares}, "here")
        run = simulate_here(experiment, tmp_path / shares[0])
        federation = experiment.federation()
        observation = observe(Attacked(Record(run.record), [1], [0, 1], federation), 1, attack)
        held = federation.learner(0).episode(1).query_inputs
        targets = Targets(held, torch.zeros(len(held), dtype=torch.int64), torch.arange(len(held)))
        if refused:
            with pytest.raises(ValueError, match=r"^the span test needs the gradient of 'layer1.weight'"):
                attack(observation, targets, 0)
        else:
            assert torch.isfinite(attack(observation, targets, 0).scores).all()


def test_of_a_mean_of_shared_parts_the_span_test_simulates_the_same_parts(tmp_path):
    attack = {"name": "span", "knows_defenses": True}
    defenses = ["secure-aggregation", {"name": "noise", "scale": 0.1}]
    targets = {"members": 10, "non_members": 10}
    changes = {"shares": ["layer1.*"], "defenses": defenses, "attacks": [attack], "targets": targets}
    experiment = experiment_from({**PLAIN, **changes}, "here")
    run = simulate_here(experiment, tmp_path / "run")
    found = assess(run, experiment, experiment.attacks[0])
    assert found.mean_of == 6
    assert found.evaluation is not None
