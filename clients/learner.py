"""The learner: a private shard, a rule, and the defenses that are applied before anything is sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.dealt_shards import ShardIndices
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.partition import TaskShape
from metaleak.clients.rules import Perturb, ReleasedMeans, Rule, meta_gradient
from metaleak.clients.shard import Draw, draw, episodes
from metaleak.clients.sharing import EVERYTHING, Patterns, computed_part, shared_part, told_clip
from metaleak.defenses import CLIP_NAME, Defense, ExampleMechanism, Place, RandomSource, Reading


@dataclass(frozen=True)
class TaskLearner:
    """Learner number `learner` of the federation, with its own images and its own order of classes.

    It sends the meta-gradients of the parameters whose names match a pattern of `shares`. The noise of its defenses
    is keyed by `secret`, which the server does not have, or without a secret, as in a simulation that can be
    repeated, by the experiment's seed.
    """

    learner: int
    seed: int
    data: LabeledExamples
    shard: ShardIndices
    task: TaskShape
    model: Model
    rule: Rule
    defenses: tuple[Defense, ...] = ()
    shares: Patterns = EVERYTHING
    secret: bytes | None = field(default=None, repr=False)

    def drawn(self, round: int) -> Draw:
        """Return the images of this round's episode, by their places in the data set."""
        return draw(self.shard, self.task, self.seed, self.learner, round)

    def episode(self, round: int) -> Episode:
        """Return the first of this round's `episodes`; it is the only one unless messages average several."""
        return Episode(*(part[0] for part in self.episodes(round)))

    def episodes(self, round: int) -> Episode:
        """Return this round's episodes as the rule gets them, after the defenses of images, with a leading axis."""
        drawn = episodes(self.data, self.drawn(round).parts(self.task.episodes_per_message))
        return drawn._replace(
            support_inputs=self._defended("support", drawn.support_inputs, round),
            query_inputs=self._defended("query", drawn.query_inputs, round),
        )

    def meta_gradient(self, parameters: Parameters, round: int) -> tuple[Parameters, Tensor]:
        """Return what the learner sends, in the shapes of the shared parameters, and its scalar query loss.

        `parameters` are all parameters of the model. The loss is not sent.
        """
        return self.told(parameters)._meta_gradient(parameters, round)

    def told(self, parameters: Parameters) -> Self:
        """Return the learner with the clipping norm that the server sent among `parameters`, if there is one."""
        return replace(self, defenses=told_clip(self.defenses, parameters)) if CLIP_NAME in parameters else self

    def _meta_gradient(self, parameters: Parameters, round: int) -> tuple[Parameters, Tensor]:
        model, moving = computed_part(self.shares, self.model, self.rule, parameters)
        batch = self.episodes(round)
        found = [
            meta_gradient(
                model,
                self.rule,
                moving,
                Episode(*(part[number] for part in batch)),
                self.perturb(round, number),
                self.means(round),
            )
            for number in range(self.task.episodes_per_message)
        ]
        gradient, loss = mean_of_episodes(found)
        shared = shared_part(self.shares, gradient)
        sent = self.defend_shared({name: value.detach() for name, value in shared.items()}, round)
        return sent, loss.detach()

    def defend_shared(self, gradient: Parameters, round: int) -> Parameters:
        """Return the meta-gradient after the defenses of the shared gradient."""
        return self._defend("shared", gradient, round)

    def perturb(self, round: int, number: int = 0) -> Perturb | None:
        """Return the function that applies the defenses of inner gradients, or `None` without such a defense.

        `number` is the number of the episode in the message, counted from 0.
        """
        if not any(defense.place == "inner" for defense in self.defenses):
            return None
        return lambda gradient, step: self._defend("inner", gradient, round, step, number)

    def means(self, round: int) -> ReleasedMeans | None:
        """Return how the rule takes means over examples, or `None` without a defense of the place `example`."""
        for order, defense in enumerate(self.defenses):
            if defense.place == "example" and isinstance(defense, ExampleMechanism):

                def source(reading: Reading, step: int, order: int = order) -> RandomSource:
                    return RandomSource.of(self._held, round, self.learner, "example", order, reading, step)

                return ReleasedMeans(defense, source, self.shares)
        return None

    @property
    def _held(self) -> int | bytes:
        return self.seed if self.secret is None else self.secret

    def _defended(self, place: Place, images: Tensor, round: int) -> Tensor:
        """Return the images `(m, n, ...)` of one set of m episodes as the defenses leave them."""
        return self._defend(place, {"inputs": images.flatten(0, 1)}, round)["inputs"].reshape(images.shape)

    def _defend(
        self, place: Place, tensors: dict[str, Tensor], round: int, step: int = 0, number: int = 0
    ) -> dict[str, Tensor]:
        for order, defense in enumerate(self.defenses):
            if defense.place == place:
                # The string is part of a random key: another would change the random numbers.
                key = (round, self.learner, "defence", order, step, *((number,) if number else ()))
                tensors = defense(tensors, RandomSource.of(self._held, *key))
        return tensors


def mean_of_episodes(found: Sequence[tuple[Parameters, Tensor]]) -> tuple[Parameters, Tensor]:
    """Return the mean of the meta-gradients and losses of a message's episodes."""
    if len(found) == 1:
        return found[0]
    gradients, losses = zip(*found, strict=True)
    mean = {name: torch.stack([one[name] for one in gradients]).mean(dim=0) for name in gradients[0]}
    return mean, torch.stack(losses).mean(dim=0)
