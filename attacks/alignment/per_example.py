"""Per-example likelihood ratios: each target is compared with what would be seen of it, held and not held.

LiRA (Carlini et al. 2022) trains shadow models with and without each target and fits a normal distribution to its
statistic in either case. Here the shadows are learners with the classes of the target's learner, the statistic is the
target's alignment with what a shadow sends, weighed over the tensors as in `Alignment`, and a shadow that holds the
target differs from one that does not in this one image. As Carlini et al. do with few shadows, spreads are pooled
over the targets, and their means are each target's own.

It is of learners that are seen one by one. A mean, as a server sees it under secure aggregation, is not like what one
shadow sends, and with a shadow added to it, it has in it whatever the real learners hold, perhaps the target.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaleak.attacks.alignment.example_gradients import flattened
from metaleak.attacks.alignment.learned_alignment import Learned, LearnedAlignment, aligned
from metaleak.attacks.attack import Answers, Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for, random_for
from metaleak.attacks.shadows.per_example_distributions import Samples, Variant, per_example_scores
from metaleak.attacks.shadows.shadow_learners import Shadows, shadow_learners, with_example
from metaleak.defenses import Defense


class PerExampleAlignment(LearnedAlignment):
    """Was this image in the learner's set that the attack `asks` about? By distributions of each target.

    `variant`: `online` fits both distributions of each target, at a meta-gradient a target and shadow; `offline` only
    that of shadows which do not hold it, and scores by how far the statistic lies above it; `learners` the same with
    the other learners of the round in the place of shadows (FedMIA, Zhu et al. 2025), whose classes are others.
    `each` shadows are simulated for every learner that is asked about. See `LearnedAlignment` for the other fields.
    """

    variant: Variant = "online"
    each: Annotated[int, Field(ge=2, le=10_000)] = 16
    knows: Literal["labels"] = "labels"

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why targets have no own distributions under `defenses`, or `None` where they have."""
        if any(defense.place == "aggregate" for defense in defenses):
            return "its distributions are of learners that are seen one by one, and the server sees their mean alone"
        return None

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return log-likelihood ratios, or of the one-sided variants the deviations above their means.

        Raises `ValueError` when the observation lacks what the attack requires or shows a mean over learners, and for
        the variant `learners` with fewer than three of them.
        """
        if observation.mean_of > 1:
            raise ValueError(
                f"its distributions are of one learner's gradient, not of a mean of {observation.mean_of}"
            )
        rows = len(next(iter(observation.gradients.values())))
        if self.variant == "learners" and rows < 3:
            raise ValueError(f"variant 'learners' needs the gradients of three learners at least, got {rows}")
        found = self.learned(observation, seed, None)
        count = rows - 1 if self.variant == "learners" else self.each
        device = targets.rows.device
        statistic = torch.empty(len(targets.rows), dtype=torch.float64, device=device)
        outside = torch.empty(len(targets.rows), count, dtype=torch.float64, device=device)
        inside = torch.empty_like(outside) if self.variant == "online" else None
        done = 0
        for row, places in targets.by_learner():
            own = self._of_learner(found, row, targets.at(places), seed)
            statistic[places], outside[places] = own.statistic, own.outside
            if inside is not None and own.inside is not None:
                inside[places] = own.inside
            done += len(places)
            if progress is not None:
                progress(done, len(targets.rows))
        return Answers(per_example_scores(Samples(statistic, outside, inside)))

    def _of_learner(self, found: Learned, row: int, targets: Targets, seed: int) -> Samples:
        """Return the statistics of targets of one learner, in what it sent and in what others send."""
        observation, metric = found.observation, found.metric
        learner = self.seen(observation, row)
        # None of the images that shadows hold: a shadow would be adapted to what stands in for it.
        stand_ins = self.standing_in(
            learner, observation, found.for_metric, generator_for(seed, "stand-ins", "target", row)
        )
        contributions = self.contributions(observation, stand_ins, targets.examples, targets.positions)
        whites = [metric.white(each) for each in contributions]

        def statistics(gradients: Tensor) -> Tensor:
            observed = metric.own(metric.white(gradients))
            return aligned(metric, whites, observed).double() @ found.discriminant.direction

        if self.variant == "learners":
            everyone = flattened(observation.gradients)
            others = [statistics(everyone[other : other + 1]) for other in range(len(everyone)) if other != row]
            return Samples(statistics(learner.gradient), torch.stack(others, dim=1), None)
        shadows = self._shadows_like(found, row, seed)
        seen = torch.split(flattened(shadows.gradients), 1)
        outside = torch.stack([statistics(gradient) for gradient in seen], dim=1)
        inside = None
        if self.variant == "online":
            inside = torch.stack(
                [statistics(self._holding(found, shadows, shadow, targets, seed)) for shadow in range(self.each)],
                dim=1,
            )
        return Samples(statistics(learner.gradient), outside, inside)

    def _shadows_like(self, found: Learned, row: int, seed: int) -> Shadows:
        observation = found.observation
        assert observation.classes is not None
        like = observation.classes[row : row + 1]
        return shadow_learners(
            replace(observation, classes=like), found.for_shadows, self.each, random_for(seed, "own", row)
        )

    def _holding(self, found: Learned, shadows: Shadows, shadow: int, targets: Targets, seed: int) -> Tensor:
        """Return what a shadow that holds each target sends, `(T, D)`."""
        random = random_for(seed, "holding", int(targets.rows[0]), shadow)
        asked = targets.examples, targets.positions
        return flattened(with_example(found.observation, shadows, shadow, self.asks, *asked, random))
