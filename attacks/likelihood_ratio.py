"""The likelihood-ratio test of an adversary who knows everything except which of two images a learner holds."""

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.func import vmap

from metaleak.attacks.attack import Answers, Progress, Targets
from metaleak.attacks.observation import Observation, Rest
from metaleak.attacks.rounds import Evidence, Round, Rounds, evidence_of
from metaleak.attacks.threat_model import Capability
from metaleak.clients.episode import Episode, Parameters
from metaleak.defenses import NO_NOISE, AddedNoise, Defense, Modeled, noise_of

_SILENT = 1e-5
"""The smallest standard deviation, in units of the root mean square: the error of float32 arithmetic."""


class LikelihoodRatio(BaseModel):
    """The exact log-likelihood ratio between two images, of which the learner holds one.

    This is the adversary of the definition of differential privacy. It knows everything else, so it knows the
    meta-gradient under both hypotheses up to the defense's noise, and the distribution of that noise. No test between
    these two images on one release is more powerful (Neyman and Pearson). What a finite number of scores proves about
    epsilon is a different question: for a mechanism known to be Gaussian, `gaussian_epsilon_lower_bound` is tighter
    than `epsilon_lower_bound`, and the worst pair of images may be further apart than any natural pair. The attack is
    an audit, since no server knows this much.

    All defenses must act on the shared gradient and state their noise (see `Modeled`), and only the last may add any.
    `chunk` targets are computed at a time, with about 10 gradients each in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_any_device: ClassVar[bool] = True

    asks: Literal["query", "support"] = "query"
    chunk: Annotated[int, Field(ge=1, le=100_000)] = 32

    @property
    def requires(self) -> frozenset[Capability]:
        """All capabilities except knowing which of the two images the learner holds."""
        return frozenset({"labels", "other set", "rest of the set", "both candidates", "defenses"})

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why the likelihood under `defenses` is unknown, or `None` if it is known."""
        for place, one in enumerate(defenses):
            noise = noise_of(one)
            if one.place != "shared" or noise is None or (noise.deviation > 0 and place < len(defenses) - 1):
                return (
                    f"the likelihood under {type(one).__name__} at the place {one.place!r} is unknown: every defense "
                    "must act on the shared gradient and state its noise, and only the last may add any"
                )
        return None

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return log-likelihood ratios as scores, and the statistic `separation`.

        `separation` is the L2 distance of the two noiseless (but clipped) meta-gradients in standard deviations of
        the noise, the mu of the Gaussian test (Dong, Roth and Su 2022). It does not depend on which image is held.
        The seed is not used. Raises `ValueError` if the observation lacks what the attack requires or is a mean over
        learners, or if the likelihood under its defenses is unknown.
        """
        rest = observation.rest
        other = observation.known_support if self.asks == "query" else observation.known_query
        if rest is None or other is None or observation.defenses is None:
            raise ValueError(
                "the likelihood ratio needs the observation's rest, known_support or known_query, and defenses"
            )
        if observation.mean_of > 1:
            raise ValueError(
                f"the likelihood ratio needs the gradients of single learners, got a mean of {observation.mean_of}"
            )
        if reason := self.reason_against(observation.defenses):
            raise ValueError(reason)
        noise = (noise_of(observation.defenses[-1]) if observation.defenses else None) or NO_NOISE
        total, device = len(targets.rows), targets.rows.device
        scores, separation = (torch.empty(total, dtype=torch.float64, device=device) for _ in range(2))
        for begin in range(0, total, self.chunk):
            some = slice(begin, min(begin + self.chunk, total))
            rows = targets.rows[some]
            seen = _flat({name: value[rows] for name, value in observation.gradients.items()})
            means = [
                self._mean(observation, rest, some, other[rows], images)
                for images in (targets.examples[some], rest.alternatives[some])
            ]
            scores[some], separation[some] = _ratio(seen, means[0], means[1], noise)
            if progress is not None:
                progress(some.stop, total)
        return Answers(scores, statistics={"separation": separation})

    def reason_against_rounds(self) -> None:
        """Return `None`: the rounds' noise is independent, so that log-likelihood ratios can be added."""
        return

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return the sum of the rounds' log-likelihood ratios, and as `separation` the root of the sum of squares.

        Both are exact: given the image that is held, the rounds differ only by independent noise.
        """
        device = targets.rows.device
        scores, squares = (torch.zeros(len(targets.rows), dtype=torch.float64, device=device) for _ in range(2))

        def of_round(round: Round) -> Evidence:
            places, asked = round.asked(targets)
            rest = round.observation.rest
            some = None if rest is None else Rest(rest.images[places], rest.slots[places], rest.alternatives[places])
            answers = self(replace(round.observation, rest=some), asked, seed)
            found = {name: torch.zeros_like(scores) for name in ("scores", "squares")}
            found["scores"][places] = answers.scores
            found["squares"][places] = answers.statistics["separation"].square()
            return found

        for number in range(len(rounds)):
            found = evidence_of(rounds, number, of_round)
            scores += found["scores"]
            squares += found["squares"]
            if progress is not None:
                progress(number + 1, len(rounds))
        return Answers(scores, statistics={"separation": squares.sqrt()})

    def _mean(
        self,
        observation: Observation,
        rest: Rest,
        some: slice,
        other: Tensor,
        images: Tensor,
    ) -> Tensor:
        """Return the noiseless meta-gradients `(t, D)` with `images (t, C, H, W)` in the unknown slots."""
        asked, device = rest.images[some].clone(), images.device
        asked[torch.arange(len(images), device=device), rest.slots[some]] = images
        support, query = (other, asked) if self.asks == "query" else (asked, other)
        support_labels, query_labels = (
            torch.arange(observation.ways, device=device).repeat_interleave(each).expand(len(images), -1)
            for each in (observation.shots, observation.queries)
        )

        def meta_gradient(episode: Episode) -> Parameters:
            return observation.rule.meta_gradient(observation.model, observation.parameters, episode)[0]

        made = vmap(meta_gradient)(Episode(support, support_labels, query, query_labels))
        made = {name: value.detach() for name, value in made.items()}
        for defense in observation.defenses or ():
            assert isinstance(defense, Modeled)
            each = [
                defense.without_noise({name: value[row] for name, value in made.items()})
                for row in range(len(images))
            ]
            made = {name: torch.stack([one[name] for one in each]) for name in made}
        return _flat({name: made[name] for name in observation.gradients})


def _ratio(seen: Tensor, first: Tensor, second: Tensor, noise: AddedNoise) -> tuple[Tensor, Tensor]:
    """Return log p(seen | first) - log p(seen | second), and the separation of the means in deviations, `(t,)` each.

    `seen`, `first` and `second` are `(t, D)` float64.
    """
    deviations = [_deviation(mean, noise) for mean in (first, second)]
    likelihoods = []
    for mean, deviation in zip((first, second), deviations, strict=True):
        if noise.law == "laplace":
            distance = math.sqrt(2) * (seen - mean).abs().sum(dim=1) / deviation
        else:
            distance = (seen - mean).square().sum(dim=1) / (2 * deviation.square())
        likelihoods.append(-distance - seen.shape[1] * deviation.log())
    apart = (first - second).norm(dim=1) / torch.stack(deviations).mean(dim=0)
    return likelihoods[0] - likelihoods[1], apart


def _deviation(mean: Tensor, noise: AddedNoise) -> Tensor:
    """Return the standard deviation of the noise on each of `mean (t, D)`, above 0, `(t,)`."""
    size = mean.square().mean(dim=1).sqrt()
    least = _SILENT * size + 1e-30
    return torch.maximum(noise.deviation * (size if noise.relative else torch.ones_like(size)), least)


def _flat(gradients: Parameters) -> Tensor:
    """Return stacked gradients as `(t, D)` float64, concatenated in the mapping's order."""
    return torch.cat([value.flatten(1).to(torch.float64) for value in gradients.values()], dim=1)
