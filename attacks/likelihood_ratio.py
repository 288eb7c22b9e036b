"""The adversary of differential privacy: it knows all but one image, and weighs the two that it may be."""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import vmap

from metaleak.attacks.observation import Answers, Knowledge, Observation, Progress, Rest, Targets
from metaleak.attacks.seeding import random_for
from metaleak.clients.episode import Episode, Parameters
from metaleak.defenses import Defence, GaussianMechanism, Noise, Pruning, Quantisation, Selection, Sign

_SILENT = 1e-5
"""The least deviation of anything sent, in units of its root mean square: what float32 arithmetic differs by."""


class LikelihoodRatio(BaseModel):
    """Was it this image, or the other one that it may be? The exact log-likelihood ratio of the two.

    Everything else is known, so that the meta-gradient is known under both hypotheses, up to the defence's noise,
    whose law is known, too. No test is more powerful (Neyman and Pearson), so nothing bounds the epsilon of a
    mechanism on natural images more sharply. It is an audit: no server knows this much.

    The defences may end with one whose noise on the shared gradient has a density, `GaussianMechanism` or `Noise`;
    any before it must be without randomness. `chunk` targets are computed at a time, about 10 gradients each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 32

    @property
    def assumes(self) -> frozenset[Knowledge]:
        """Everything but which of two images is held."""
        return frozenset({"labels", "other set", "rest of the set", "both candidates", "defences"})

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return log-likelihood ratios as scores, and the statistic `separation`.

        That is the L2 distance of the two noiseless meta-gradients in standard deviations of the noise, clipped where
        the defence clips: the mu of the Gaussian test (Dong, Roth and Su 2022), without knowing which of the two is
        held. The seed is not used. Raises `ValueError` when the observation lacks what is assumed, shows means over
        learners, or the defences cannot be weighed.
        """
        rest = observation.rest
        other = observation.known_support if self.asks == "query" else observation.known_query
        if rest is None or other is None or observation.defences is None:
            raise ValueError("the likelihood ratio needs the observation's rest, other set and defences")
        if observation.mean_of > 1:
            raise ValueError(
                f"the likelihood ratio is of one learner's gradient, not of a mean of {observation.mean_of}"
            )
        before, noise = _weighed(observation.defences)
        total = len(targets.rows)
        scores, separation = torch.empty(total, dtype=torch.float64), torch.empty(total, dtype=torch.float64)
        for begin in range(0, total, self.chunk):
            some = slice(begin, min(begin + self.chunk, total))
            rows = targets.rows[some]
            seen = _flat({name: value[rows] for name, value in observation.gradients.items()})
            means = [
                self._mean(observation, rest, some, other[rows], images, before)
                for images in (targets.images[some], rest.alternatives[some])
            ]
            scores[some], separation[some] = _ratio(seen, means[0], means[1], noise)
            if progress is not None:
                progress(some.stop, total)
        return Answers(scores, statistics={"separation": separation})

    def _mean(
        self,
        observation: Observation,
        rest: Rest,
        some: slice,
        other: Tensor,
        images: Tensor,
        before: tuple[Defence, ...],
    ) -> Tensor:
        """Return the meta-gradients `(t, D)` with `images (t, C, H, W)` in the open places, before any noise."""
        asked = rest.images[some].clone()
        asked[torch.arange(len(images)), rest.slots[some]] = images
        support, query = (other, asked) if self.asks == "query" else (asked, other)
        support_labels, query_labels = (
            torch.arange(observation.ways).repeat_interleave(each).expand(len(images), -1)
            for each in (observation.shots, observation.queries)
        )

        def meta_gradient(episode: Episode) -> Parameters:
            return observation.rule.meta_gradient(observation.model, observation.parameters, episode)[0]

        made = vmap(meta_gradient)(Episode(support, support_labels, query, query_labels))
        made = {name: value.detach() for name, value in made.items()}
        for defence in before:
            each = [
                defence({name: value[row] for name, value in made.items()}, random_for("likelihood ratio"))
                for row in range(len(images))
            ]
            made = {name: torch.stack([one[name] for one in each]) for name in made}
        return _flat({name: made[name] for name in observation.gradients})


def _weighed(defences: tuple[Defence, ...]) -> tuple[tuple[Defence, ...], Defence | None]:
    """Return the noiseless defences of the place `shared` and the noise that ends them; raise for all others."""
    noise = defences[-1] if defences and isinstance(defences[-1], GaussianMechanism | Noise) else None
    before = defences[:-1] if noise is not None else defences
    strange = [one for one in before if not _noiseless(one)]
    strange += [noise] if noise is not None and noise.place != "shared" else []
    if strange:
        raise ValueError(
            f"the likelihood under {type(strange[0]).__name__} at the place {strange[0].place!r} is not known here: "
            "only the last defence may be random, and its noise must be on the shared gradient"
        )
    return before, noise


def _noiseless(defence: Defence) -> bool:
    return isinstance(defence, Pruning | Selection | Sign) or (
        isinstance(defence, Quantisation) and not defence.stochastic
    )


def _ratio(seen: Tensor, first: Tensor, second: Tensor, noise: Defence | None) -> tuple[Tensor, Tensor]:
    """Return log p(seen | first) - log p(seen | second) `(t,)`, and how many deviations lie between the two.

    All are `(t, D)` float64.
    """
    if isinstance(noise, GaussianMechanism):
        first, second = clipped_rows(first, noise.clip), clipped_rows(second, noise.clip)
    laplace = isinstance(noise, Noise) and noise.law == "laplace"
    deviations = [_deviation(mean, noise) for mean in (first, second)]
    likelihoods = []
    for mean, deviation in zip((first, second), deviations, strict=True):
        if laplace:
            distance = math.sqrt(2) * (seen - mean).abs().sum(dim=1) / deviation
        else:
            distance = (seen - mean).square().sum(dim=1) / (2 * deviation.square())
        likelihoods.append(-distance - seen.shape[1] * deviation.log())
    apart = (first - second).norm(dim=1) / torch.stack(deviations).mean(dim=0)
    return likelihoods[0] - likelihoods[1], apart


def _deviation(mean: Tensor, noise: Defence | None) -> Tensor:
    """Return the standard deviation of what is sent about each of `mean (t, D)`, above 0, `(t,)`."""
    size = mean.square().mean(dim=1).sqrt()
    least = _SILENT * size + 1e-30
    if isinstance(noise, GaussianMechanism):
        return least.clamp(min=noise.standard_deviation)
    if isinstance(noise, Noise):
        return torch.maximum(noise.scale * size, least)
    return least


def clipped_rows(vectors: Tensor, clip: float) -> Tensor:
    """Return each of `vectors (t, D)` as `GaussianMechanism` clips it to the L2 norm `clip`."""
    norms = vectors.norm(dim=1, keepdim=True)
    shorter = torch.where(norms > clip, vectors * (clip / norms), vectors)
    return torch.where(norms < float("inf"), shorter, torch.zeros_like(vectors))


def _flat(gradients: Parameters) -> Tensor:
    """Return stacked gradients as `(t, D)` float64, the parameters in their own order."""
    return torch.cat([value.flatten(1).to(torch.float64) for value in gradients.values()], dim=1)
