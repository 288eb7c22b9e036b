"""The truth about membership, rebuilt from the experiment's seed: only the evaluation may ask for it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.observation import Targets
from metaleak.clients.federation import Federation
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.shard import Draw
from metaleak.deploy.experiment import TargetSettings

SETS: tuple[Literal["query", "support"], ...] = ("query", "support")


@dataclass(frozen=True)
class Truth:
    """The questions that an attack is asked, with their answers kept apart.

    All tensors are `(T,)` int64 and speak of the same target, but `member`, which is bool: `learner` by number,
    `position` in the learner's task, `image` as an index into the data set, its class `label`, and `held`, the image
    that the learner really holds at that position.
    """

    learner: Tensor
    position: Tensor
    image: Tensor
    label: Tensor
    held: Tensor
    member: Tensor

    def targets(self, federation: Federation, learners: list[int]) -> Targets:
        """Return the questions as an attack sees them; `learners` are the rows of its observation."""
        row_of = {learner: row for row, learner in enumerate(learners)}
        return Targets(
            images=pixels(federation, self.image),
            rows=torch.tensor([row_of[learner] for learner in self.learner.tolist()]),
            positions=self.position,
        )


def pixels(federation: Federation, images: Tensor) -> Tensor:
    """Return the images of these indices as the learners see them, float32 `(n, C, H, W)` in [0, 1]."""
    return federation.images().images[images].to(torch.float32) / 255.0


def ask(
    federation: Federation,
    learners: list[int],
    round: int,
    asks: Literal["query", "support"],
    settings: TargetSettings,
) -> Truth:
    """Return the targets of one attack on one round.

    Members are drawn from what `learners` held in `round`, at most `settings.members`. Non-members are images that no
    learner ever holds: each takes a drawn learner and position, and an image of the class that stands there, so that
    members and non-members have the same classes while the images last. Raises `ValueError` when there is none.
    """
    generator = keyed_generator(federation.seed, round, "targets", asks)
    draws = {learner: federation.learner(learner).drawn(round) for learner in learners}
    held = [
        (learner, position, image, int(drawn.classes[position]))
        for learner, drawn in draws.items()
        for position, images in enumerate(_asked(drawn, asks).tolist())
        for image in images
    ]
    order = torch.randperm(len(held), generator=generator).tolist()
    members = [held[place] for place in order[: settings.members]]
    outsiders = _outsiders(federation, [held[place] for place in order], settings.non_members, generator)
    if not outsiders:
        raise ValueError("no learner's class has an image that no learner holds; raise partition.non_members")
    asked = [(*row, row[2], True) for row in members] + [(*row, image, False) for row, image in outsiders]
    # An attack must not learn from the order of its targets.
    shuffled = [asked[place] for place in torch.randperm(len(asked), generator=generator).tolist()]
    columns = [torch.tensor(column) for column in zip(*shuffled, strict=True)]
    learner, position, truly_held, label, image, member = columns
    return Truth(learner, position, image, label, truly_held, member)


def _outsiders(
    federation: Federation, held: list[tuple[int, int, int, int]], count: int, generator: torch.Generator
) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return at most `count` of `held` (learner, position, image, class), each with an image of its class to ask of.

    No image is asked about twice, so that every non-member is a new piece of evidence; places are taken in turn while
    their class has images left.
    """
    indices = federation.split().non_members
    labels = federation.images().labels[indices]
    pools = {
        label: pool[torch.randperm(len(pool), generator=generator)].tolist()
        for label in sorted({row[3] for row in held})
        for pool in [indices[labels == label]]
    }
    asked: list[tuple[tuple[int, int, int, int], int]] = []
    while len(asked) < count and any(pools.values()):
        asked += [(row, pools[row[3]].pop()) for row in held if pools[row[3]]][: count - len(asked)]
    return asked


def held_images(
    federation: Federation, learners: list[int], round: int, which: Literal["query", "support"]
) -> Tensor:
    """Return one set of every learner, `(L, n, C, H, W)`, for a threat model in which the adversary knows it."""
    indices = [_asked(federation.learner(learner).drawn(round), which).flatten() for learner in learners]
    return torch.stack([pixels(federation, images) for images in indices])


def held_classes(federation: Federation, learners: list[int], round: int) -> Tensor:
    """Return the class at each of every learner's positions, `(L, ways)` int64."""
    return torch.stack([federation.learner(learner).drawn(round).classes for learner in learners])


def _asked(drawn: Draw, which: Literal["query", "support"]) -> Tensor:
    return drawn.query if which == "query" else drawn.support
