"""Per-example likelihood ratios: a target's alignment among shadow learners that hold it and that do not.

LiRA (Carlini et al. 2022) trains shadow models with and without each target and fits a normal distribution to its
statistic in either case. Here the shadows are learners with the classes of the target's learner, and the statistic is
the target's alignment with a shadow's gradient, with the weights of tensors as in `Alignment`. A shadow that holds
the target differs in this one image from one that does not. As in Carlini et al. with few shadows, means are
estimated for each target and variances are pooled over targets.

The attack is for learners that the server sees individually. Under secure aggregation it sees a mean, which is not
distributed like a single shadow's gradient; and the mean of the real learners and a shadow always contains the target
if a real learner holds it.
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
    """Membership inference by distributions of each target's alignment among other learners.

    `variant`: `online` fits both distributions of each target, at one meta-gradient per target and shadow; `offline`
    fits only that of shadows without the target, and scores by the z-score of the statistic; `learners` is the same
    with the other learners of the round in place of shadows (FedMIA, Zhu et al. 2025), which have other classes.
    `each` shadows are simulated for every attacked learner. See `LearnedAlignment` for the other fields.
    """

    variant: Variant = "online"
    each: Annotated[int, Field(ge=2, le=10_000)] = 16
    knows: Literal["labels"] = "labels"

    def reason_against(self, defenses: tuple[Defense, ...]) -> str | None:
        """Return in one line why the attack cannot be made under `defenses`, or `None` if it can."""
        if any(defense.place == "aggregate" for defense in defenses):
            return "it needs the gradients of single learners, and the server sees only their mean"
        return None

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return log-likelihood ratios (`online`) or z-scores (the other variants).

        Raises `ValueError` if the observation lacks what the attack requires or is a mean over learners, and for the
        variant `learners` with fewer than three learners.
        """
        if observation.mean_of > 1:
            raise ValueError(f"it needs the gradients of single learners, got a mean of {observation.mean_of}")
        rows = len(next(iter(observation.gradients.values())))
        if self.variant == "learners" and rows < 3:
            raise ValueError(f"variant: 'learners' needs the gradients of at least three learners, got {rows}")
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
        """Return the statistics of one learner's targets in its gradient and in those of others."""
        observation, metric = found.observation, found.metric
        learner = self.seen(observation, row)
        # Not images that shadows hold: a shadow's parameters are adapted to them.
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
        """Return the gradients of a shadow that holds each target in turn, `(T, D)`."""
        random = random_for(seed, "holding", int(targets.rows[0]), shadow)
        asked = targets.examples, targets.positions
        return flattened(with_example(found.observation, shadows, shadow, self.asks, *asked, random))
