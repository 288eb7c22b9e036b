import pytest
import torch
from small_federation import federation

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.rules import FedSGD, anil
from metaleak.clients.sharing import WithConstants, matching, told_clip
from metaleak.defenses import CLIP_NAME, AdaptiveClip, GaussianMechanism

NAMES = ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias")


def test_patterns_choose_names_in_the_models_order():
    assert matching(("*.bias", "layer1.*"), NAMES) == ("layer1.weight", "layer1.bias", "layer2.bias")


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_what_there_is():
    with pytest.raises(ValueError, match=r"shares: .* 'conv'; there are layer1.weight, layer1.bias"):
        matching(("layer1.*", "conv"), NAMES)


@pytest.mark.parametrize("rule", [FedSGD(), anil()], ids=["fedsgd", "anil"])
def test_what_is_shared_of_some_parameters_is_what_would_be_shared_of_them_among_all(rule):
    all_shared = federation(rule=rule)
    some = federation(rule=rule, shares=("layer1.*",))
    parameters = all_shared.initial_parameters()
    assert list(some.shared(parameters)) == ["layer1.weight", "layer1.bias"]
    expected, _ = cohort_meta_gradients(all_shared.learners([2, 3]), parameters, 1, chunk=1)
    found, _ = cohort_meta_gradients(some.learners([2, 3]), parameters, 1, chunk=1)
    assert list(found) == ["layer1.weight", "layer1.bias"]
    alone, _ = some.learner(3).meta_gradient(parameters, 1)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
        torch.testing.assert_close(value[1], alone[name])


def test_the_parameters_that_are_not_shared_stay_as_they_began():
    some = federation(shares=("layer1.weight",))
    parameters = some.initial_parameters()
    moved = some.whole({"layer1.weight": parameters["layer1.weight"] + 1})
    assert list(moved) == list(parameters)
    assert torch.equal(moved["layer1.bias"], parameters["layer1.bias"])
    assert not torch.equal(moved["layer1.weight"], parameters["layer1.weight"])


def test_only_what_is_shared_or_adapted_is_differentiated():
    some = federation(rule=anil(), shares=("layer1.weight",))
    model, moving = some.computed(some.initial_parameters())
    assert isinstance(model, WithConstants)
    assert set(moving) == {"layer1.weight", "head.weight", "head.bias"}
    assert model.head == ("head.weight", "head.bias")


@pytest.mark.parametrize("log", [float("nan"), float("inf"), -float("inf")])
def test_a_clipping_norm_that_is_not_finite_and_positive_is_refused(log):
    defense = GaussianMechanism(clip=1.0, noise_multiplier=1.0, adapt=AdaptiveClip())
    with pytest.raises(ValueError, match=r"^clipping\.log_norm: .* finite, positive norm, got [^\n]*$"):
        told_clip((defense,), {CLIP_NAME: torch.tensor([log])})
