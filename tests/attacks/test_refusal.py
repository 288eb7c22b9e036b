"""Why an attack is not applicable: one check for all callers."""

import pytest
from flower_apps.networks import CNN
from pydantic import ValidationError

from metaleak.attacks.alignment.alignment import Alignment
from metaleak.attacks.alignment.per_example import PerExampleAlignment
from metaleak.attacks.likelihood_ratio import LikelihoodRatio
from metaleak.attacks.refusal import refusal
from metaleak.attacks.span.span_test import SpanTest
from metaleak.attacks.threat_model import ThreatModel
from metaleak.clients.models import MLP, LeNet, TorchModule
from metaleak.defenses import Noise


def test_an_unlimited_threat_model_refuses_nothing():
    assert refusal(Alignment(), LeNet()) is None
    assert refusal(Alignment(), LeNet(), threat_model=ThreatModel()) is None


def test_missing_capabilities_are_named():
    known = ThreatModel(knows=frozenset({"labels", "defenses"}))
    assert (
        refusal(Alignment(), LeNet(), threat_model=known)
        == "requires classes, own examples, which the threat model does not include"
    )
    assert refusal(SpanTest(), MLP(), threat_model=known) is None


def test_a_model_and_defenses_that_an_attack_does_not_apply_to_are_named():
    assert refusal(SpanTest(), LeNet()) == "does not apply to the model LeNet"
    assert refusal(SpanTest(), TorchModule(CNN())) == "does not apply to the model CNN"
    said = refusal(LikelihoodRatio(), MLP(), (Noise(place="support"),))
    assert said is not None
    assert said.startswith("does not apply: the likelihood under Noise at the place 'support' is unknown")


def test_a_capability_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="Input should be 'labels', 'classes'"):
        ThreatModel(knows=frozenset({"everything"}))  # type: ignore[arg-type]


def test_a_threat_model_is_always_written_in_the_same_order():
    known = ThreatModel(knows=frozenset({"own examples", "labels", "classes"}))
    assert known.model_dump(mode="json") == {"knows": ["classes", "labels", "own examples"]}
    assert ThreatModel.model_validate(known.model_dump(mode="json")) == known


def test_an_attack_that_uses_one_round_is_refused_for_several_with_a_reason():
    said = refusal(PerExampleAlignment(), LeNet(), rounds=20)
    assert said == "uses one round only, but targets.rounds is 20"
    said = refusal(SpanTest(), MLP(), rounds=20)
    assert said is not None
    assert said.startswith("uses one round only, but targets.rounds is 20: knows_defenses")
    assert refusal(SpanTest(knows_defenses=True), MLP(), rounds=20) is None
    assert refusal(Alignment(), LeNet(), rounds=20) is None
