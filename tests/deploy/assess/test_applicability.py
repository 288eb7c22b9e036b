"""An attack that makes no sense on an experiment is not applicable, and says in one line why."""

import pytest

from metaleak.deploy.assess.applicability import reason_against
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from

GAUSSIAN = {"name": "gaussian", "clip": 1.0, "epsilon": 8.0}


def reason(attack, **changes):
    return reason_against(
        experiment_from({"data": {"name": "digits"}, "attacks": [], **changes}, "test"), Plugin(name=attack)
    )


@pytest.mark.parametrize(
    ("defenses", "said"),
    [
        ([], None),
        ([GAUSSIAN], None),
        ([{"name": "sign"}, GAUSSIAN], None),
        ([{"name": "noise", "place": "query"}], "Noise at the place 'query'"),
        ([GAUSSIAN, {"name": "sign"}], "GaussianMechanism at the place 'shared'"),
        ([{"name": "quantization", "bits": 8, "stochastic": True}], "Quantization at the place 'shared'"),
        ([{"name": "secure-aggregation"}], "SecureAggregation at the place 'aggregate'"),
    ],
)
def test_a_likelihood_that_is_not_known_is_not_applicable(defenses, said):
    found = reason("likelihood-ratio", defenses=defenses)
    if said is None:
        assert found is None
    else:
        assert found.startswith(f"likelihood-ratio does not apply: the likelihood under {said}")
        assert "\n" not in found


def test_the_span_test_does_not_apply_to_models_without_an_input_weight():
    assert reason("span", model={"name": "mlp"}) is None
    assert reason("span", model={"name": "lenet"}) == "span does not apply to the model LeNet"


def test_an_attack_that_requires_more_than_the_threat_model_includes_is_not_applicable():
    assert reason("span", threat_model={"knows": ["labels"]}) is None
    assert (
        reason("alignment", threat_model={"knows": ["labels"]})
        == "alignment requires classes, defenses, own examples, which the threat model does not include"
    )
    assert reason("alignment", threat_model={"knows": ["labels", "classes", "own examples", "defenses"]}) is None


def test_the_threat_model_is_no_part_of_a_simulation():
    plain = {"data": {"name": "digits"}, "attacks": []}
    limited = experiment_from({**plain, "threat_model": {"knows": ["labels"]}}, "test")
    assert limited.simulation_key() == experiment_from(plain, "test").simulation_key()
