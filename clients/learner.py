"""The task-learner: a private shard, a rule, and the defenses that stand before anything leaves."""

from dataclasses import dataclass, field

from torch import Tensor

from metaleak.clients.datasets import LabeledExamples
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.partition import ShardIndices, TaskShape
from metaleak.clients.rules import Perturb, ReleasedMeans, Rule, meta_gradient
from metaleak.clients.shard import Draw, draw, episode
from metaleak.clients.sharing import EVERYTHING, Patterns, computed_part, shared_part
from metaleak.defenses import Defense, ExampleMechanism, Place, RandomSource, Reading


@dataclass(frozen=True)
class TaskLearner:
    """A learner: number `learner` of the federation, with its own images and its own order of classes.

    It sends the meta-gradients of the parameters whose names a pattern of `shares` matches.

    Its defenses draw under `secret`, which no server has; without one (a simulation that can be repeated) under the
    experiment's seed.
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
        """Return which images this round's episode is made of."""
        return draw(self.shard, self.task, self.seed, self.learner, round)

    def episode(self, round: int) -> Episode:
        """Return this round's episode as the rule will see it: drawn from the shard, its images defended."""
        drawn = episode(self.data, self.drawn(round))
        return drawn._replace(
            support_inputs=self._defend("support", {"inputs": drawn.support_inputs}, round)["inputs"],
            query_inputs=self._defend("query", {"inputs": drawn.query_inputs}, round)["inputs"],
        )

    def meta_gradient(self, parameters: Parameters, round: int) -> tuple[Parameters, Tensor]:
        """Return what the learner sends, shaped like the shared of `parameters`, and the query loss that it keeps.

        `parameters` are all of the model, the loss is a scalar.
        """
        model, moving = computed_part(self.shares, self.model, self.rule, parameters)
        gradient, loss = meta_gradient(
            model, self.rule, moving, self.episode(round), self.perturb(round), self.means(round)
        )
        shared = shared_part(self.shares, gradient)
        sent = self.defend_shared({name: value.detach() for name, value in shared.items()}, round)
        return sent, loss.detach()

    def defend_shared(self, gradient: Parameters, round: int) -> Parameters:
        """Return the meta-gradient as it leaves."""
        return self._defend("shared", gradient, round)

    def perturb(self, round: int) -> Perturb | None:
        """Return what the defenses do to each inner step's gradient, or `None` when there is nothing to do."""
        if not any(defense.place == "inner" for defense in self.defenses):
            return None
        return lambda gradient, step: self._defend("inner", gradient, round, step)

    def means(self, round: int) -> ReleasedMeans | None:
        """Return how the rule takes means over examples, or `None` when no defense has a part in them."""
        for order, defense in enumerate(self.defenses):
            if defense.place == "example" and isinstance(defense, ExampleMechanism):

                def source(reading: Reading, step: int, order: int = order) -> RandomSource:
                    return RandomSource.of(self._held, round, self.learner, "example", order, reading, step)

                return ReleasedMeans(defense, source)
        return None

    @property
    def _held(self) -> int | bytes:
        return self.seed if self.secret is None else self.secret

    def _defend(self, place: Place, tensors: dict[str, Tensor], round: int, step: int = 0) -> dict[str, Tensor]:
        for order, defense in enumerate(self.defenses):
            if defense.place == place:
                # The letters are part of a random key: others would draw other numbers.
                tensors = defense(tensors, RandomSource.of(self._held, round, self.learner, "defence", order, step))
        return tensors
