"""Intersections of row spaces over rounds of fresh image noise, also if clean images leave the gradient."""

from collections.abc import Sequence

import pytest
import torch

from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round
from metaleak.attacks.span.image_noise_over_rounds import (
    clean_images_over_rounds,
    intersections,
    noisy_images_over_rounds,
)
from metaleak.attacks.span.predicted_coefficients import dense_input
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML

LEARNERS, CLEAN, NOISY, NOISE = 8, 10, 5, 4.0
IMAGES = EmbeddedMNIST().load().inputs(torch.arange(0, 5000, 10))
HELD = IMAGES[: LEARNERS * (CLEAN + NOISY)].reshape(LEARNERS, CLEAN + NOISY, 1, 28, 28)
OTHERS, OWN = IMAGES[120:280], IMAGES[280:]
MODEL = MLP(hidden=(64,))
FIRST = dense_input(MODEL).weight


class Faded(Sequence[Round]):
    """Rounds of five noisy images each, and of ten clean images, of which only three are left from the fourth on."""

    def __init__(self, count: int, targets: Targets, remaining: int = 3) -> None:
        self.count, self.targets, self.remaining = count, targets, remaining

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place)
        parameters = MODEL.initialize((1, 28, 28), 5, generator)
        images = HELD.flatten(2).double()
        noisy = images[:, CLEAN:] + NOISE * torch.randn(LEARNERS, NOISY, 784, generator=generator)
        coefficients = torch.randn(LEARNERS, 64, CLEAN + NOISY, generator=generator, dtype=torch.float64)
        if place >= 3:
            coefficients[:, :, self.remaining : CLEAN] = 0
        first = coefficients @ torch.cat([images[:, :CLEAN], noisy], dim=1)
        gradients = {name: torch.ones(LEARNERS, *value.shape) for name, value in parameters.items()}
        seen = Observation(
            MODEL,
            MAML(),
            parameters,
            {**gradients, FIRST: first.float()},
            ways=5,
            shots=1,
            queries=2,
            own_examples=OWN,
        )
        return Round(place + 1, seen, torch.arange(LEARNERS), self.targets.positions)


def asked(images: torch.Tensor) -> tuple[Targets, torch.Tensor]:
    """Return each learner's `images (L, n, ...)` and as many others as targets, and which are members."""
    each = images.shape[1]
    examples = torch.cat([images.flatten(0, 1), OTHERS[: LEARNERS * each]])
    rows = torch.arange(LEARNERS).repeat_interleave(each).repeat(2)
    return Targets(examples, rows, torch.zeros_like(rows)), torch.arange(len(rows)) < len(rows) // 2


def auc(scores: torch.Tensor, member: torch.Tensor) -> float:
    return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value


def test_noisy_images_are_found_in_rounds_without_clean_ones():
    targets, member = asked(HELD[:, CLEAN:])
    three, fifteen = (
        auc(noisy_images_over_rounds(Faded(count, targets), targets, "support", NOISE), member) for count in (3, 15)
    )
    assert fifteen > three + 0.02


def test_clean_images_are_found_though_later_rounds_lack_them():
    targets, member = asked(HELD[:, :CLEAN])
    assert auc(clean_images_over_rounds(Faded(8, targets), targets), member) > 0.99


@pytest.mark.parametrize("remaining", [0, 3])
def test_the_span_is_that_of_the_clean_images_of_the_first_rounds(remaining):
    targets, _ = asked(HELD[:, :CLEAN])
    spans, answers = intersections(Faded(6, targets, remaining))
    assert answers == [3] * LEARNERS
    clean = HELD[:, :CLEAN].flatten(2).double()
    for span, images in zip(spans, clean, strict=True):
        assert span is not None
        assert span.shape == (CLEAN, 784)
        assert (images - images @ span.mT @ span).norm() < 1e-3 * images.norm()


def test_the_intersection_of_one_round_is_its_row_space():
    targets, _ = asked(HELD[:, :CLEAN])
    spans, answers = intersections(Faded(1, targets))
    assert answers == [1] * LEARNERS
    assert [len(span) for span in spans if span is not None] == [CLEAN + NOISY] * LEARNERS
