"""Record-level privacy: what an example can add to a mean, and what all means of a run cost each set."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest

from metaleak.clients.rules import MAML, FedAvg, FedMeNF, FedSGD, Reptile
from metaleak.defenses import Accounted, Defense, ExampleMechanism, RandomSource, RecordLevel, gaussian_epsilon
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.errors import WrongUsage

RULES = {
    "fomaml": MAML(order=1, inner_steps=3),
    "maml": MAML(inner_steps=3),
    "reptile": Reptile(),
    "sgd": FedSGD(),
    "fedavg": FedAvg(epochs=2, batch=10),
    "fedmenf": FedMeNF(order=1),
}
SPENT = {"fomaml": (3, 1), "maml": (6, 1), "reptile": (5, 5), "sgd": (1, 1), "fedavg": (2, 2), "fedmenf": (1, 2)}
"""The means of one round to which an example of the support set, and one of the query set, contributes."""


def test_it_is_a_defense_with_a_guarantee():
    mechanism = RecordLevel(noise_multiplier=1)
    assert isinstance(mechanism, Defense)
    assert isinstance(mechanism, ExampleMechanism)
    assert isinstance(mechanism, Accounted)


@given(
    norms=st.lists(st.floats(0) | st.just(math.nan), min_size=1, max_size=5),
    clip=st.floats(1e-6, 1e6),
)
def test_no_contribution_exceeds_the_clipping_norm(norms, clip):
    sizes = torch.tensor(norms, dtype=torch.float64)
    weights = RecordLevel(clip=clip, noise_multiplier=1).weights(sizes, "query")
    assert ((weights >= 0) & (weights <= 1)).all()
    kept = weights * sizes.nan_to_num(0.0, 0.0, 0.0)
    assert (kept < clip).all()
    assert (weights[sizes <= 0.9 * clip] == 1).all(), "what is small stays as it is"
    assert (weights[~torch.isfinite(sizes)] == 0).all()


def test_each_kind_of_mean_has_its_clipping_norm_and_its_noise():
    mechanism = RecordLevel(clip=1, query_clip=0.5, noise_multiplier=2)
    mean = mechanism.noisy_mean({"w": torch.full((10_000,), 30.0)}, 10, "query", RandomSource.of(0))["w"]
    assert mechanism.standard_deviation("query", 10) == pytest.approx(2 * 2 * 0.5 / 10)
    assert mechanism.standard_deviation("support", 10) == pytest.approx(2 * 2 * 1 / 10)
    assert kstest(mean.numpy(), "norm", args=(3.0, 0.2)).pvalue > 0.01


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_epsilon_is_spent_on_each_set_over_the_whole_run(name, epsilon):
    rounds = 40
    ready = RecordLevel(epsilon=epsilon).for_readings(RULES[name].readings).for_releases(rounds)
    found = ready.epsilons_after(rounds)
    for examples, means, reading in zip(("support", "query"), SPENT[name], ("support", "query"), strict=True):
        asked = reading if reading in RULES[name].readings else "all"
        assert ready.means_a_round(examples) == means
        assert found[examples] == pytest.approx(epsilon, rel=1e-6)
        assert found[examples] <= epsilon
        assert gaussian_epsilon(ready.multiplier(asked), rounds * means, 1e-5) == found[examples]
    assert ready.epsilon_after(rounds // 2) < epsilon


def test_with_one_noise_multiplier_the_set_that_is_read_more_costs_more():
    ready = RecordLevel(noise_multiplier=4).for_readings(RULES["fomaml"].readings)
    found = ready.epsilons_after(10)
    assert found["support"] == gaussian_epsilon(4, 30, 1e-5) > found["query"] == gaussian_epsilon(4, 10, 1e-5)
    assert ready.epsilon_after(10) == found["support"]
    assert RecordLevel(noise_multiplier=0).for_readings({"all": 1}).epsilon_after(1) == math.inf


def test_an_experiment_fills_in_rounds_and_readings():
    experiment = experiment_from(
        {
            "rule": {"name": "fomaml", "inner_steps": 2},
            "partition": {"learners": 4},
            "server": {"rounds": 7},
            "defenses": [{"name": "metaleak.defenses:RecordLevel", "epsilon": 8}],
        },
        "test",
    )
    (ready,) = experiment.built_defenses()
    assert (ready.releases, ready.readings) == (7, {"support": 2, "query": 1})
    assert ready.epsilon_after(7) == pytest.approx(8)


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ([{"epsilon": 8, "readings": {"all": 1}}], r"defenses.0.readings: the rule takes"),
        ([{"epsilon": 8, "releases": 2}], r"defenses.0.releases: a learner takes part in 3 rounds"),
        ([{"epsilon": 8}, {"epsilon": 8}], r"defenses: at most one may be of the place 'example'"),
        (
            [{"epsilon": 8}, {"name": "noise", "place": "inner"}],
            r"defenses: at most one may be of the place 'example'",
        ),
    ],
)
def test_what_cannot_be_accounted_for_is_refused_in_one_line(defenses, message):
    full = [{"name": "metaleak.defenses:RecordLevel", **one} for one in defenses]
    with pytest.raises(WrongUsage, match=message):
        experiment_from({"rule": "fomaml", "server": {"rounds": 3}, "defenses": full}, "test")


@pytest.mark.parametrize(
    "settings", [{}, {"epsilon": 1, "noise_multiplier": 1}, {"noise_multiplier": 1, "releases": 3}]
)
def test_settings_that_say_nothing_or_too_much_are_refused(settings):
    with pytest.raises(ValidationError, match=r"epsilon|releases"):
        RecordLevel(**settings)
