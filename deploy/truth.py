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
    members and non-members have the same classes. Raises `ValueError` when a class has no such image.
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
    pools = _by_class(federation)
    outsiders = [held[order[place % len(held)]] for place in range(settings.non_members)]
    non_members: list[int] = []
    for _, _, _, label in outsiders:
        pool = pools.get(label)
        if pool is None or len(pool) == 0:
            raise ValueError(
                f"class {federation.images().classes[label]!r} has no image that no learner holds; "
                "raise partition.non_members"
            )
        non_members.append(int(pool[torch.randint(len(pool), (), generator=generator)]))
    asked = members + outsiders
    return Truth(
        learner=torch.tensor([row[0] for row in asked]),
        position=torch.tensor([row[1] for row in asked]),
        image=torch.tensor([row[2] for row in members] + non_members),
        label=torch.tensor([row[3] for row in asked]),
        held=torch.tensor([row[2] for row in asked]),
        member=torch.arange(len(asked)) < len(members),
    )


def held_images(
    federation: Federation, learners: list[int], round: int, which: Literal["query", "support"]
) -> Tensor:
    """Return one set of every learner, `(L, n, C, H, W)`, for a threat model in which the adversary knows it."""
    indices = [_asked(federation.learner(learner).drawn(round), which).flatten() for learner in learners]
    return torch.stack([pixels(federation, images) for images in indices])


def _asked(drawn: Draw, which: Literal["query", "support"]) -> Tensor:
    return drawn.query if which == "query" else drawn.support


def _by_class(federation: Federation) -> dict[int, Tensor]:
    indices = federation.split().non_members
    labels = federation.images().labels[indices]
    return {int(label): indices[labels == label] for label in set(labels.tolist())}
