"""Membership: an attack's scores of the targets, or distances to its reconstructions, and how well they separate."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save

from metaleak.attacks.attack import Answers, AsksMembership, Divisible, joined
from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.membership import Evaluation, evaluate
from metaleak.attacks.nearest_reconstruction import answers_by_nearest
from metaleak.attacks.rounds import AsksOverRounds
from metaleak.deploy.assess.kept_parts import KeptParts
from metaleak.deploy.assess.observe import Attacked, RecordedRounds, observe
from metaleak.deploy.assess.privacy import measured_privacy
from metaleak.deploy.assess.reconstruction import Rebuilt
from metaleak.deploy.assess.time_limit import Advance
from metaleak.deploy.assess.truth import NoNonMembers, Truth, ask, ask_over, inputs
from metaleak.deploy.config.experiment import TargetSettings
from metaleak.deploy.results.arrays import write_columns
from metaleak.deploy.results.schema import Privacy
from metaleak.server.record.whole_file import write_whole

_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Asked:
    """The targets of an attack with the truth, its answers, and what they prove about a guarantee.

    `mean_of` is the number of learners of whom the server saw only the mean, 1 if it saw each one's gradient.
    """

    truth: Truth
    answers: Answers
    privacy: Privacy
    mean_of: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of how well the scores tell members from non-members."""
        return self._evaluated(self.answers.scores)

    @cached_property
    def statistics(self) -> dict[str, Estimate]:
        """The AUC of every statistic by itself, where small values count as "member"."""
        return {name: self._evaluated(-values).auc for name, values in self.answers.statistics.items()}

    def write(self, scores: Path, gallery: Path, attacked: Attacked) -> None:
        """Write one row per target to the Parquet file `scores`, and some images, if there are any, to `gallery`."""
        columns = {
            "learner": self.truth.learner,
            "round": torch.full_like(self.truth.learner, attacked.rounds[0]),
            "position": self.truth.position,
            "example": self.truth.example,
            "label": self.truth.label,
            "member": self.truth.member,
            "score": self.answers.scores,
            **self.answers.statistics,
        }
        write_columns(scores, columns)
        if self.answers.reconstructions is not None:
            members = torch.nonzero(self.truth.member).flatten()[:_SHOWN]
            non_members = torch.nonzero(~self.truth.member).flatten()[:_SHOWN]
            shown = torch.cat([members, non_members])
            tensors = {
                "prior": inputs(attacked.federation, self.truth.example[shown]),
                "reconstruction": self.answers.reconstructions[shown].to(torch.float32).contiguous(),
                "truth": inputs(attacked.federation, self.truth.held[shown]),
                "member": self.truth.member[shown].to(torch.uint8),
                "score": self.answers.scores[shown].to(torch.float32),
            }
            write_whole(gallery, save(tensors))

    def _evaluated(self, scores: torch.Tensor) -> Evaluation:
        # The scores of all learners in one mean depend on each other, so together they are one cluster.
        groups = self.truth.learner if self.mean_of == 1 else torch.zeros_like(self.truth.learner)
        return evaluate(scores.numpy(), self.truth.member.numpy(), groups=groups.numpy())


def ask_membership(
    attack: AsksMembership,
    attacked: Attacked,
    settings: TargetSettings,
    releases: int,
    whole: int,
    seed: int,
    device: torch.device,
    kept: KeptParts,
    advance: Advance,
) -> Asked:
    """Return the answers of `attack` to the targets that `settings` draw.

    A guarantee is accounted for `releases` messages, and for the number of the `whole` run. All answers are kept on
    disk until the whole attack has ended. Raises `ValueError` when there are no targets.
    """
    answered = {round: attacked.answered(round) for round in attacked.rounds}
    truth = ask_over(attacked.federation, answered, attack.asks, settings)
    everything = torch.arange(len(truth.learner))
    answers = kept.answers(
        attacked.rounds[0],
        everything,
        lambda: _answers(attack, attacked, truth, seed, device, kept, advance),
    )
    mean_of = attacked.mean_of
    privacy = measured_privacy(attacked.federation, releases, truth, answers.scores, mean_of > 1, whole)
    return Asked(truth, answers, privacy, mean_of)


def ask_nearest(
    rebuilt: Rebuilt,
    asks: Literal["query", "support"],
    attacked: Attacked,
    settings: TargetSettings,
    releases: int,
    whole: int,
) -> Asked | None:
    """Return how well the distance to the nearest reconstruction tells members from non-members.

    The targets that `settings` draw belong to the learners that were `rebuilt`, in the first attacked round. For
    `releases` and `whole` see `ask_membership`. Returns `None` when every image is held by some learner, or when
    nothing was rebuilt.
    """
    federation, learners = attacked.federation, rebuilt.learner.tolist()
    if not rebuilt.made.examples.shape[1]:
        return None
    try:
        truth = ask(federation, learners, attacked.rounds[0], asks, settings)
    except NoNonMembers:
        return None
    answers = answers_by_nearest(rebuilt.made, truth.targets(federation, learners), federation.examples().padding)
    mean_of = attacked.mean_of
    privacy = measured_privacy(federation, releases, truth, answers.scores, mean_of > 1, whole)
    return Asked(truth, answers, privacy, mean_of)


def _answers(
    attack: AsksMembership,
    attacked: Attacked,
    truth: Truth,
    seed: int,
    device: torch.device,
    kept: KeptParts,
    advance: Advance,
) -> Answers:
    """Return the attack's answers over all rounds, or in the only one.

    Raises `ValueError` for an attack on several rounds that can use only one.
    """
    asked = truth.targets(attacked.federation, attacked.learners).to(device)
    if len(attacked.rounds) > 1:
        if not isinstance(attack, AsksOverRounds):
            raise ValueError(f"{type(attack).__name__} uses one round only, got {len(attacked.rounds)}")
        return attack.over_rounds(RecordedRounds(attacked, attack, truth, device, kept), asked, seed, advance)
    (round,) = attacked.rounds
    observation = observe(attacked, round, attack, truth).to(device)
    parts = attack.parts(observation, asked) if isinstance(attack, Divisible) else ()
    if not parts:
        return attack(observation, asked, seed, advance)
    found, before = [], 0
    for places in parts:

        def tell(done: int, of: int, before: int = before, size: int = len(places)) -> None:
            advance(before + size * done / max(1, of), len(asked.rows))

        ask = partial(attack, observation, asked.at(places), seed, tell)
        found.append(kept.answers(round, places, ask))
        before += len(places)
    return joined([places.cpu() for places in parts], found)
