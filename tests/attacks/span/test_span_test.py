"""The span test on real MNIST digits, and its invariants for any data."""

import dataclasses
import functools

import pytest
import torch
from membership_questions import inputs, questions
from pydantic import ValidationError

from metaleak.attacks.attack import Attack, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.span.span_test import SpanTest, span_scores, with_bias_column
from metaleak.clients import Federation, Partition, TaskShape
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import MLP, Conv4, LeNet, TorchModule
from metaleak.clients.rules import MAML, FedAvg, FedSGD, Reptile
from metaleak.defenses import AddedNoise, GaussianMechanism, Noise, Selection

LEARNERS = list(range(6))


@functools.cache
def federation(defenses=(), model=None, rule=None):
    """Learners of 5-way 3-shot 4-query tasks: 35 images, against 64 units."""
    return Federation(
        seed=1,
        data=EmbeddedMNIST(),
        task=TaskShape(ways=5, shots=3, queries=4),
        partition=Partition(learners=6),
        model=model or MLP(hidden=(64, 64)),
        rule=rule or MAML(),
        defenses=defenses,
    )


@functools.cache
def observe(defenses=(), model=None, rule=None):
    made = federation(defenses, model, rule)
    parameters = made.initial_parameters()
    gradients, _ = cohort_meta_gradients(made.learners(LEARNERS), parameters, 1)
    own = made.split().held_out
    return Observation(
        made.model,
        made.rule,
        parameters,
        gradients,
        *(5, 3, 4),
        own_examples=inputs(made, own),
        own_labels=made.examples().labels[own],
        defenses=defenses,
    )


@functools.cache
def asked(asks):
    return questions(federation(), LEARNERS, 1, asks, members=500, non_members=600)


def auc(scores, member):
    inside, outside = scores[member].double(), scores[~member].double()
    return float(((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)).double().mean())


def found(asks, defenses=(), model=None, rule=None, **settings):
    targets, member = asked(asks)
    test, observation = SpanTest(asks=asks, **settings), observe(defenses, model, rule)
    outside = test.evidence(observation, targets).statistics["outside"]
    return auc(test(observation, targets, seed=0).scores, member), auc(-outside, member)


def noise(place, scale):
    return (Noise(place=place, scale=scale),)


def test_it_is_an_attack_and_states_what_it_requires():
    assert isinstance(SpanTest(), Attack)
    assert SpanTest().requires == frozenset()
    assert SpanTest(knows_defenses=True).requires == {"defenses", "own examples"}
    assert SpanTest(**SpanTest(asks="support").model_dump()) == SpanTest(asks="support")
    with pytest.raises(ValidationError, match="coefficients"):
        SpanTest(coefficients="none")


@pytest.mark.parametrize("asks", ["query", "support"])
@pytest.mark.parametrize("coefficients", ["free", "predicted"])
def test_members_of_an_undefended_gradient_are_all_found(asks, coefficients):
    assert found(asks, coefficients=coefficients)[0] == 1


def test_members_of_an_exact_span_have_no_residual():
    """With float64 gradients made of known images, a member's residual is rounding and a non-member's is not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    gradient = torch.randn(3, 40, 10, generator=generator, dtype=torch.float64) @ images[:30].reshape(3, 10, 60)
    scores = span_scores(gradient, images)
    member = torch.eye(3, dtype=torch.bool).repeat_interleave(10, dim=1)
    assert scores.shape == (3, 30)
    assert scores[member].min() > scores[~member].max() + 10
    # The score is the logarithm of a ratio of mean squares: out of the span, that of the residual itself.
    basis = torch.linalg.qr(gradient[0].mT @ torch.randn(40, 10, generator=generator, dtype=torch.float64))[0].mT
    rest = images[10:] - images[10:] @ basis.mT @ basis
    exact = (images[10:] @ torch.linalg.pinv(gradient[0])).square().sum(dim=1) / (rest.square().sum(dim=1) / 50)
    differences = scores[0, 10:] - exact.log()
    assert torch.allclose(differences, differences[:1].expand(20), atol=1e-6)


def test_scaling_the_gradient_changes_nothing():
    observation = observe(noise("shared", 0.1))
    gradient, images = with_bias_column(observation.gradients, "layer1.weight"), torch.rand(7, 785)
    assert torch.allclose(span_scores(1e-3 * gradient, images), span_scores(gradient, images), atol=1e-4)
    targets, _ = asked("query")
    scaled = {name: 1e3 * value for name, value in observation.gradients.items()}
    for asks in ("query", "support"):
        plain = SpanTest(asks=asks)(observation, targets, 0).scores
        other = SpanTest(asks=asks)(dataclasses.replace(observation, gradients=scaled), targets, 0).scores
        assert torch.allclose(plain, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"coefficients": "free"}, {"asks": "support"}, {"knows_defenses": True}])
def test_permuting_learners_and_targets_permutes_scores(settings):
    observation, (targets, _) = observe(noise("query", 0.3)), asked("query")
    scores = SpanTest(**settings).evidence(observation, targets).scores
    order, learners = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1)), torch.arange(5, -1, -1)
    turned = dataclasses.replace(
        observation, gradients={name: value[learners] for name, value in observation.gradients.items()}
    )
    moved = Targets(targets.examples[order], 5 - targets.rows[order], targets.positions[order])
    assert torch.allclose(SpanTest(**settings).evidence(turned, moved).scores, scores[order], rtol=1e-5, atol=1e-5)


def test_under_noise_it_beats_the_threshold_on_the_distance():
    for asks, scale in (("query", 1.0), ("support", 0.3)):
        predicted, threshold = found(asks, noise("shared", scale))
        free, _ = found(asks, noise("shared", scale), coefficients="free")
        assert predicted > free > threshold
        assert 1 - predicted < (1 - threshold) / 3


def test_the_likelihood_of_noisy_images_finds_members_that_the_span_alone_does_not():
    for asks in ("query", "support"):
        both = noise("query", 0.3) + noise("support", 0.3)
        adaptive, threshold = found(asks, both, knows_defenses=True)
        assert adaptive > 0.95
        assert 1 - adaptive < (1 - threshold) / 3
        assert adaptive > found(asks, both)[0] + 0.1


def test_weights_learned_from_shadow_learners_improve_the_scores():
    for asks, defenses in (("query", noise("shared", 8.0)), ("support", noise("shared", 3.0))):
        targets, member = asked(asks)
        test, observation = SpanTest(asks=asks, knows_defenses=True), observe(defenses)
        alone = auc(test.evidence(observation, targets).scores, member)
        assert auc(test(observation, targets, seed=0).scores, member) > alone + 0.01


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_noise_on_the_inner_gradient_hides_no_member(scale):
    assert min(found(asks, noise("inner", scale))[0] for asks in ("query", "support")) > 0.999


def test_it_distinguishes_query_from_support_images():
    query, support = asked("query")[0], asked("support")[0]
    observation = observe()
    for asks, mine, others in (("query", query, support), ("support", support, query)):
        inside = asked(asks)[1]
        other = asked("support" if asks == "query" else "query")[1]
        test = SpanTest(asks=asks)
        scores = torch.cat([test(observation, mine, 0).scores[inside], test(observation, others, 0).scores[other]])
        assert auc(scores, torch.arange(len(scores)) < int(inside.sum())) > 0.85


def test_fewer_units_than_images_lose_the_span_but_not_the_coefficients():
    small = MLP(hidden=(16,))
    for asks in ("query", "support"):
        assert found(asks, model=small)[0] > found(asks, model=small, coefficients="free")[0] + 0.05


@pytest.mark.parametrize(
    "rule",
    [
        MAML(adapts="head"),
        MAML(inner_steps=3, inner_rate=0.1),
        Reptile(inner_rate=0.05),
        FedSGD(),
        FedAvg(epochs=3, batch=12, rate=0.05),
    ],
    ids=str,
)
def test_other_rules_keep_their_images_in_the_span(rule):
    assert min(found(asks, rule=rule)[0] for asks in ("query", "support")) > 0.99


def test_first_order_support_images_are_not_in_the_span():
    assert found("query", rule=MAML(order=1))[0] > 0.99
    assert 0.3 < found("support", rule=MAML(order=1))[0] < 0.7


def test_several_rounds_find_more_than_one():
    """Rounds of the same episodes, each with its own noise, find more together than one does on average."""
    observation, (targets, member) = observe(), asked("query")
    generator, scores = torch.Generator().manual_seed(0), []
    for _ in range(4):
        noisy = {
            name: value
            + 10 * observation.gradients["layer1.weight"].std() * torch.randn(value.shape, generator=generator)
            for name, value in observation.gradients.items()
        }
        scores.append(SpanTest()(dataclasses.replace(observation, gradients=noisy), targets, 0).scores)
    assert auc(sum(scores), member) > sum(auc(one, member) for one in scores) / 4 + 0.01


def test_a_gradient_of_zeros_gives_no_evidence():
    targets, _ = asked("query")
    answers = SpanTest()(observe((Selection(),)), targets, seed=0)
    assert answers.scores.tolist() == [0] * len(targets.rows)
    assert answers.statistics["outside"].tolist() == [1] * len(targets.rows)


def test_the_noise_of_a_private_mechanism_is_used():
    defenses = (GaussianMechanism(clip=1e6, noise_multiplier=1e-10),)
    assert found("query", defenses, knows_defenses=True)[0] == pytest.approx(found("query", defenses)[0], abs=0.01)


def test_one_learner_alone_is_attacked_too():
    observation, (targets, member) = observe(noise("shared", 0.03)), asked("query")
    alone = dataclasses.replace(
        observation, gradients={name: value[2:3] for name, value in observation.gradients.items()}
    )
    mine = targets.rows == 2
    few = Targets(targets.examples[mine], targets.rows[mine] * 0, targets.positions[mine])
    assert auc(SpanTest()(alone, few, 0).scores, member[mine]) > 0.99
    none = Targets(targets.examples[:0], targets.rows[:0], targets.positions[:0])
    assert SpanTest()(alone, none, 0).scores.shape == (0,)


def test_progress_counts_learners():
    calls = []
    SpanTest(coefficients="free")(observe(), asked("query")[0], 0, lambda done, of: calls.append((done, of)))
    assert calls == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("model", [LeNet(filters=2), Conv4(filters=2, normalization="none")])
def test_models_without_a_dense_first_layer_are_refused(model):
    with pytest.raises(ValueError, match=f"needs a dense first layer, which {type(model).__name__} does not have"):
        SpanTest()(dataclasses.replace(observe(), model=model), asked("query")[0], 0)


def test_inputs_that_do_not_fit_are_named():
    observation, (targets, _) = observe(), asked("query")
    with pytest.raises(ValueError, match=r"must have 784 values, as 'layer1\.weight' takes, got 196"):
        SpanTest()(observation, dataclasses.replace(targets, examples=targets.examples[:, :, ::2, ::2]), 0)
    with pytest.raises(ValueError, match=r"targets\.rows: must be in \[0, 6\)"):
        SpanTest()(observation, dataclasses.replace(targets, rows=targets.rows + 6), 0)
    with pytest.raises(ValueError, match="observation's defenses, which are None"):
        SpanTest(knows_defenses=True)(dataclasses.replace(observation, defenses=None), targets, 0)
    blind = dataclasses.replace(observe(noise("query", 0.3)), own_examples=None)
    with pytest.raises(ValueError, match="observation's own_examples, which are None"):
        SpanTest(knows_defenses=True)(blind, targets, 0)


def test_a_mean_in_every_row_is_scored_as_one_gradient():
    targets, _ = asked("query")
    seen = observe(noise("shared", 0.3))
    mean = {name: value.mean(dim=0, keepdim=True) for name, value in seen.gradients.items()}
    single = dataclasses.replace(seen, gradients=mean, mean_of=6)
    rows = {name: value.expand(6, *value.shape[1:]) for name, value in mean.items()}
    everywhere = dataclasses.replace(single, gradients=rows)
    one = Targets(targets.examples, torch.zeros_like(targets.rows), targets.positions)
    torch.testing.assert_close(SpanTest()(everywhere, targets, seed=0).scores, SpanTest()(single, one, seed=0).scores)


class Squares:
    """A user's model whose first layer is dense, but which is not an MLP."""

    @property
    def input_weight(self):
        return "in.weight"

    def initialize(self, input_shape, ways, generator):
        shapes = {"in.weight": (64, 784), "in.bias": (64,), "head.weight": (ways, 64)}
        return {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}

    def __call__(self, parameters, images):
        first = images.flatten(1) @ parameters["in.weight"].mT + parameters["in.bias"]
        return first.square().log1p() @ parameters["head.weight"].mT


@pytest.mark.parametrize("asks", ["query", "support"])
@pytest.mark.parametrize("coefficients", ["free", "predicted"])
def test_it_works_on_a_users_model_that_names_its_input_weight(asks, coefficients):
    assert SpanTest().applies_to(Squares())
    assert found(asks, model=Squares(), coefficients=coefficients)[0] > 0.99


class Normalize(torch.nn.Module):
    """The usual normalization of MNIST."""

    def forward(self, images):
        return (images - 0.1307) / 0.3081


@functools.cache
def own_module(normalized=False):
    """A user's module, unknown to metaleak."""
    before = [Normalize()] if normalized else []
    layers = [torch.nn.Flatten(), torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)]
    return TorchModule(torch.nn.Sequential(*before, *layers))


@pytest.mark.parametrize("asks", ["query", "support"])
@pytest.mark.parametrize("coefficients", ["free", "predicted"])
@pytest.mark.parametrize("normalized", [False, True], ids=["plain", "normalized"])
def test_it_works_on_a_torch_module_whose_first_layer_is_dense(asks, coefficients, normalized):
    model = own_module(normalized)
    assert SpanTest().applies_to(model)
    # A normalized image is some ten times longer, squared: a smaller step adapts as much.
    rule = MAML(inner_rate=0.03) if normalized else MAML()
    assert found(asks, model=model, rule=rule, coefficients=coefficients)[0] > 0.99


def test_the_likelihood_of_noisy_images_holds_for_normalized_ones():
    both, rule = noise("query", 0.3) + noise("support", 0.3), MAML(inner_rate=0.03)
    adaptive, _ = found("query", both, own_module(normalized=True), rule, knows_defenses=True)
    assert adaptive > 0.95


def test_the_noise_that_a_users_defense_states_is_used():
    class Own:
        place = "shared"

        def noise(self):
            return AddedNoise("gaussian", 1e-3)

        def without_noise(self, tensors):
            return tensors

        def __call__(self, tensors, generator):
            raise NotImplementedError

    targets, _ = asked("query")
    seen = observe((GaussianMechanism(clip=1e6, noise_multiplier=5e-10),))
    own, ours = (
        SpanTest(knows_defenses=True).evidence(dataclasses.replace(seen, defenses=defenses), targets).scores
        for defenses in ((Own(),), seen.defenses)
    )
    assert torch.equal(own, ours)
    assert not torch.equal(own, SpanTest().evidence(seen, targets).scores)


def test_it_applies_to_dense_first_layers_only():
    assert SpanTest().applies_to(MLP())
    assert not SpanTest().applies_to(Conv4())
    assert not SpanTest().applies_to(LeNet())


@pytest.mark.parametrize("settings", [{}, {"coefficients": "free"}, {"asks": "support"}, {"knows_defenses": True}])
def test_it_creates_tensors_on_the_device_of_its_inputs(settings):
    """The default device is set to one without data: a tensor created there would fail or show in the scores."""
    test = SpanTest(**settings)
    given = observe((Noise(place=test.asks, scale=0.1),)), asked(test.asks)[0], 0
    plain = test(*given)
    with torch.device("meta"):
        answers = test(*given)
    assert test.on_any_device
    assert torch.equal(answers.scores, plain.scores)
    assert answers.statistics.keys() == plain.statistics.keys()
    assert all(torch.equal(answers.statistics[name], value) for name, value in plain.statistics.items())
