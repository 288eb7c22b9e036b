"""Gradient alignment: does the meta-gradient contain the contribution of this image?

The meta-gradient is a sum of contributions, one for each image. The adversary computes the target's with its own
images in place of the unknown support set, and takes its inner product with what was observed, in a metric in which
the components that all images share count little (`whitening`). How members and others score is learned from shadow
learners: one linear discriminant, pooled over all targets, whose log-likelihood ratio is the answer. That learning
from simulated members and non-members is inspired by LiRA (Carlini et al. 2022) and is not LiRA, which fits
distributions to each target anew from shadow models with and without it. The idea of scoring by alignment follows
FedMIA (Zhu et al. 2025).
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
from metaleak.attacks.shadows.weighed_rounds import RoundRatios, weighed_over
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

        Where the server sees a mean of learners, each shadow learner is simulated as one more learner in that mean.
        Raises `ValueError` when the observation lacks what the attack requires.
        """
        return Answers(self._ratios(observation, targets, seed, None, progress)[0])

    def reason_against_rounds(self) -> None:
        """Return `None`: rounds are weighed by what shadow learners reveal in them."""
        return

    def over_rounds(self, rounds: Rounds, targets: Targets, seed: int, progress: Progress | None = None) -> Answers:
        """Return log-likelihood ratios from those of single rounds, weighed by shadow learners; see `weighed`.

        The shadows hold the same images in every round, and their defenses draw anew.
        """
        return Answers(weighed_over(rounds, lambda round: self._of_round(round, targets, seed), progress))

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
        """Return the log-likelihood ratios of targets in one round, and of shadows' images and others.

        With `noise` the shadows are those of several rounds.
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
