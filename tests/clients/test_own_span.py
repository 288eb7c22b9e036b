"""Computing in the span of a learner's own images gives what plain computing gives, wherever it is taken.

That the plain meta-gradients are right, `test_derivatives.py` holds.
"""

import pytest
import torch
from torch import Tensor

from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import MLP, LeNet
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import (
    MAML,
    FedAvg,
    FedSGD,
    Perturb,
    Reptile,
    Rule,
    anil,
    batch_in_parts,
    batch_meta_gradients,
    first_order_maml,
)
from metaleak.clients.rules.own_span import own_span_meta_gradients, own_span_pays

WAYS, LEARNERS = 3, 4
POSITIONS = torch.arange(WAYS)


def some_batch(shots: int = 1, queries: int = 1, dtype: torch.dtype = torch.float64) -> Episode:
    """Real images; which ones matters to nobody here."""
    count = LEARNERS * WAYS * (shots + queries)
    images = EmbeddedMNIST().load().examples[:count].to(dtype) / 255
    parts = images.reshape(LEARNERS, -1, 1, 28, 28).split([WAYS * shots, WAYS * queries], dim=1)
    support, query = (POSITIONS.repeat_interleave(each).expand(LEARNERS, -1) for each in (shots, queries))
    return Episode(parts[0], support, parts[1], query)


def start(model: MLP | LeNet, dtype: torch.dtype = torch.float64) -> Parameters:
    fresh = model.initialize((1, 28, 28), WAYS, keyed_generator("start"))
    return {name: value.to(dtype) for name, value in fresh.items()}


def assert_same(computed: tuple[Parameters, Tensor], plain: tuple[Parameters, Tensor], tolerance: float) -> None:
    assert set(computed[0]) == set(plain[0])
    torch.testing.assert_close(computed[1], plain[1], rtol=tolerance, atol=tolerance)
    for name, value in plain[0].items():
        assert computed[0][name].shape == value.shape
        assert float((computed[0][name] - value).norm()) <= tolerance * max(float(value.norm()), 1e-3), name


def one_by_one(model: MLP, rule: Rule, parameters: Parameters, batch: Episode) -> tuple[Parameters, Tensor]:
    alone = [
        batch_meta_gradients(model, rule, parameters, Episode(*(part[row : row + 1] for part in batch)))
        for row in range(LEARNERS)
    ]
    gradients = {name: torch.cat([gradient[name] for gradient, _ in alone]) for name in parameters}
    return gradients, torch.cat([loss for _, loss in alone])


@pytest.mark.parametrize(
    "model", [MLP(hidden=(40, 8)), MLP(hidden=(40,), activation="tanh", bias=False), MLP(hidden=())], ids=str
)
@pytest.mark.parametrize(
    "rule",
    [
        MAML(inner_steps=2),
        first_order_maml(inner_steps=2),
        anil(inner_steps=2),
        Reptile(inner_steps=3),
        FedSGD(),
        FedAvg(epochs=2, batch=4),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
def test_it_is_the_plain_meta_gradient(model: MLP, rule: Rule, dtype: torch.dtype, tolerance: float) -> None:
    parameters, batch = start(model, dtype), some_batch(2, 1, dtype)
    assert_same(
        own_span_meta_gradients(model, rule, parameters, batch), one_by_one(model, rule, parameters, batch), tolerance
    )


@pytest.mark.parametrize("case", ["repeated", "empty"])
def test_images_that_span_less_than_their_number_are_no_trouble(case: str) -> None:
    model, rule, batch = MLP(hidden=(40, 8)), MAML(), some_batch()
    batch.query_inputs[0, 1] = batch.support_inputs[0, 0] if case == "repeated" else 0.0
    batch.query_inputs[1] = batch.support_inputs[1] if case == "repeated" else 0.0
    parameters = start(model)
    assert_same(
        own_span_meta_gradients(model, rule, parameters, batch), one_by_one(model, rule, parameters, batch), 1e-11
    )


def test_a_batch_of_few_images_a_learner_is_computed_so() -> None:
    model, rule, batch = MLP(hidden=(40, 8)), MAML(), some_batch()
    parameters = start(model)
    together, _ = batch_meta_gradients(model, rule, parameters, batch)
    in_span, _ = own_span_meta_gradients(model, rule, parameters, batch)
    assert all(torch.equal(together[name], in_span[name]) for name in parameters)


def test_a_pixel_that_is_empty_in_all_images_has_no_gradient() -> None:
    """An outer Adam would turn rounding errors into full steps."""
    model, batch = MLP(hidden=(40, 8)), some_batch(dtype=torch.float32)
    gradients, _ = own_span_meta_gradients(model, MAML(), start(model, torch.float32), batch)
    empty = (torch.cat([batch.support_inputs, batch.query_inputs], dim=1).flatten(2) == 0).all(dim=1)
    assert empty[:, 0].all()
    assert gradients["layer1.weight"].mT[empty].abs().max() == 0
    assert gradients["layer1.weight"].mT[~empty].abs().max() > 0


class SignDescent(MAML):
    """Steps by the gradient's signs: turning the images changes more than the direction of its steps."""

    def adapt(
        self, model: MLP, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        moved = super().adapt(model, parameters, episode, perturb)
        return {name: value + 0.01 * (moved[name] - value).detach().sign() for name, value in parameters.items()}


class Inverted(MLP):
    """Looks at white on black as at black on white."""

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        return super().__call__(parameters, 1.0 - images)


def test_only_where_it_is_exact() -> None:
    model, batch = MLP(hidden=(40, 8)), some_batch()
    parameters = start(model)
    assert own_span_pays(model, MAML(), parameters, 6)
    assert not own_span_pays(model, SignDescent(), parameters, 6)
    assert not own_span_pays(model, first_order_maml(), parameters, 6), "rounding would tell the support images"
    assert not own_span_pays(Inverted(hidden=(40, 8)), MAML(), parameters, 6)
    assert not own_span_pays(LeNet(), MAML(), start(LeNet()), 6)
    assert_same(
        batch_meta_gradients(model, SignDescent(), parameters, batch),
        one_by_one(model, SignDescent(), parameters, batch),
        1e-11,
    )
    # The case is a real one: in the span this rule would give something else.
    wrong, _ = own_span_meta_gradients(model, SignDescent(), parameters, batch)
    right, _ = one_by_one(model, SignDescent(), parameters, batch)
    assert float((wrong["layer1.weight"] - right["layer1.weight"]).norm()) > 1e-3


def test_not_with_more_images_than_pay() -> None:
    model = MLP(hidden=(4,))
    assert own_span_pays(model, MAML(), start(model), 7)
    assert not own_span_pays(model, MAML(), start(model), 8)


@pytest.mark.parametrize("hidden", [(6,), (64, 64), (33,)])
@pytest.mark.parametrize("part", [1, 400_000, 1 << 30])
def test_some_learners_at_a_time_give_the_same_bits(hidden: tuple[int, ...], part: int, monkeypatch: object) -> None:
    monkeypatch.setattr("metaleak.clients.rules.own_span._PART", part)  # type: ignore[attr-defined]
    model, batch = MLP(hidden=hidden), some_batch(dtype=torch.float32)
    parameters = start(model, torch.float32)
    whole, _ = batch_meta_gradients(model, MAML(), parameters, batch)
    # Copied: a part is good until the next is asked for.
    parts = [
        {name: value.clone() for name, value in one.items()}
        for one in batch_in_parts(model, MAML(), parameters, batch)
    ]
    assert all(torch.equal(torch.cat([one[name] for one in parts]), whole[name]) for name in whole)
