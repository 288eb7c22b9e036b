"""Gradient alignment: does the meta-gradient contain the contribution of this image?

The meta-gradient is a sum of contributions, one for each image. The adversary computes the target's contribution with
its own images in place of the unknown support set, and takes its inner product with the observed gradient, in a
metric that gives little weight to components common to all images (see `gradient_metric`). The distributions of
members' and non-members' alignments are learned from shadow learners: one linear discriminant, pooled over all
targets, gives the log-likelihood ratio. Learning from simulated members and non-members is inspired by LiRA (Carlini
et al. 2022), but is not LiRA, which fits distributions to each target from shadow models with and without it. Scoring
by alignment follows FedMIA (Zhu et al. 2025).
"""

from typing import ClassVar

import torch
from torch import Tensor

from metaleak.attacks.alignment.learned_alignment import LearnedAlignment
from metaleak.attacks.attack import Answers, Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round, Rounds
from metaleak.attacks.seeding import generator_for, random_for
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.weighted_rounds import RoundRatios, weighted_over
from metaleak.defenses import RandomSource


class Alignment(LearnedAlignment):
    """Membership of images in the set that the attack `asks` about, by one discriminant pooled over all targets.

    For per-target likelihood ratios see `PerExampleAlignment`. See `LearnedAlignment` for the fields.
    """

    on_any_device: ClassVar[bool] = True

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return log-likelihood ratios of the pooled discriminant's normal distributions.

        If the server sees a mean over learners, each shadow learner is simulated as one more learner in that mean.
        Raises `ValueError` if the observation lacks what the attack requires.
        """
        return Answers(self._ratios(observation, targets, seed, None, progress)[0])

    def reason_against_rounds(self) -> None:
        """Return `None`: weights of rounds are learned from shadow learners."""
        return

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return log-likelihood ratios from those of single rounds, combined by `weighted`.

        Shadow learners hold the same images in every round, and their defenses draw fresh noise.
        """
        return Answers(weighted_over(rounds, lambda round: self._of_round(round, targets, seed), progress))

    def _of_round(self, round: Round, targets: Targets, seed: int) -> RoundRatios:
        places, asked = round.asked(targets)
        noise = random_for(seed, "noise", round.number)
        found, members, others = self._ratios(round.observation, asked, seed, noise, None)
        ratios = torch.full((len(targets.rows),), torch.nan, dtype=torch.float64, device=targets.rows.device)
        ratios[places] = found
        return RoundRatios(ratios, round.chances_of(targets), members, others)

    def _ratios(
        self,
        observation: Observation,
        targets: Targets,
        seed: int,
        noise: RandomSource | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-likelihood ratios of targets in one round, of shadows' members and of non-members.

        With `noise` the shadow learners are the same in several rounds, and their defenses draw from it.
        """
        found = self.learned(observation, seed, noise)
        observation, own = found.observation, OwnExamples.of(observation)
        scores = torch.empty(len(targets.rows), dtype=torch.float64, device=targets.rows.device)
        done = 0
        for row, places in targets.by_learner():
            learner = self.seen(observation, row)
            stand_ins = self.standing_in(learner, observation, own, generator_for(seed, "stand-ins", "target", row))
            features = self.features(
                learner, observation, found.metric, stand_ins, targets.examples[places], targets.positions[places]
            )
            scores[places] = found.discriminant.log_ratio(features)
            done += len(places)
            if progress is not None:
                progress(done, len(targets.rows))
        members, others = (found.discriminant.log_ratio(features) for features in found.known)
        return scores, members, others
