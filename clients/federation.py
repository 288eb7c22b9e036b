"""All learners of an experiment; each is built only in the process that needs it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from metaleak.clients.datasets import DataSet, LabeledExamples
from metaleak.clients.episode import Parameters
from metaleak.clients.faults import NO_FAULTS, Faults
from metaleak.clients.learner import TaskLearner
from metaleak.clients.models import Model
from metaleak.clients.partition import Partition, Split, TaskShape, split
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.rules import Rule
from metaleak.clients.sharing import EVERYTHING, Patterns, computed_part, shared_part, with_clip
from metaleak.defenses import CLIP_NAME, Defense, RandomSource


@dataclass(frozen=True)
class Federation:
    """What all learners of an experiment have in common; small enough to send to an actor.

    Each process that uses a learner loads the images and draws the shards once. `secret` replaces `seed` as the key
    of the defenses' noise; only the nodes of a deployment have one, see `TaskLearner`.

    `shares` are patterns of the names of the parameters that are shared. The other parameters are in no message:
    every learner has them from the initialization on, and they never change, except that a rule may adapt them
    within an episode.
    """

    seed: int
    data: DataSet
    task: TaskShape
    partition: Partition
    model: Model
    rule: Rule
    defenses: tuple[Defense, ...] = ()
    faults: Faults = NO_FAULTS
    shares: Patterns = EVERYTHING
    secret: bytes | None = field(default=None, repr=False)

    def examples(self) -> LabeledExamples:
        """Return the data set's images, loaded once in this process."""
        return _images(self.data)

    def split(self) -> Split:
        """Return which learner holds which examples; this is the truth, for learners and the evaluation only."""
        return _split(self.data, self.partition, self.task, self.seed)

    def learner(self, learner: int) -> TaskLearner:
        """Return task-learner number `learner`; raises `ValueError` for a number outside the federation."""
        return self.learners([learner])[0]

    def learners(self, numbers: Sequence[int]) -> list[TaskLearner]:
        """Return the task-learners with these numbers; raises `ValueError` for one outside the federation."""
        shards, images = self.split().shards, self.examples()
        strangers = [number for number in numbers if not 0 <= number < len(shards)]
        if strangers:
            raise ValueError(
                f"learner {strangers[0]} is not one of the {len(shards)} learners, 0 to {len(shards) - 1}"
            )
        return [
            TaskLearner(
                learner=number,
                seed=self.seed,
                data=images,
                shard=shards[number],
                task=self.task,
                model=self.model,
                rule=self.rule,
                defenses=self.defenses,
                shares=self.shares,
                secret=self.secret,
            )
            for number in numbers
        ]

    def answering(self, parameters: Parameters) -> "Federation":
        """Return the federation for answers to `parameters`; with a secret, its learners' noise depends on these.

        The server chooses the round's number. If it sends different parameters twice in one round, the noise must
        differ, or it would cancel in the difference of the answers. The same message always gets the same answer.
        """
        if self.secret is None:
            return self
        digest = hashlib.blake2b(digest_size=32)
        for name in sorted(parameters):
            digest.update(repr((name, parameters[name].shape, parameters[name].dtype)).encode())
            digest.update(parameters[name].detach().contiguous().numpy().data)
        return replace(self, secret=RandomSource.of(self.secret, digest.digest()).key)

    def initial_parameters(self) -> Parameters:
        """Return the initialization of all parameters, shared or not, which the experiment's seed determines.

        It includes the clipping norm of a defense that adapts it, under `CLIP_NAME`.
        """
        return with_clip(self.defenses, _initialized(self.model, self.data, self.task.ways, self.seed))

    def shared(self, parameters: Parameters) -> Parameters:
        """Return those of `parameters` that are shared; raises `ValueError` for a pattern that matches none."""
        return shared_part(self.shares, parameters)

    def whole(self, shared: Parameters) -> Parameters:
        """Return all parameters: the given `shared` ones, and the others from the initialization."""
        if self.shares == EVERYTHING:
            return shared
        device = next(iter(shared.values())).device
        initial = _initial(self.model, self.data, self.task.ways, self.seed)  # type: ignore[arg-type]
        whole = {name: shared[name] if name in shared else value.to(device) for name, value in initial.items()}
        return {**whole, CLIP_NAME: shared[CLIP_NAME]} if CLIP_NAME in shared else whole

    def computed(self, parameters: Parameters) -> tuple[Model, Parameters]:
        """Return the model and the part of `parameters` with which learners compute meta-gradients."""
        return computed_part(self.shares, self.model, self.rule, parameters)


@lru_cache(maxsize=2)
def _images(data: DataSet) -> LabeledExamples:
    return data.load()


@lru_cache(maxsize=4)
def _split(data: DataSet, partition: Partition, task: TaskShape, seed: int) -> Split:
    images = _images(data)
    return split(images.labels, images.held_out_classes, partition, task, seed)


def _initialized(model: Model, data: DataSet, ways: int, seed: int) -> Parameters:
    # The string is part of a random key: another would change the random numbers.
    generator = keyed_generator(seed, "initialisation")
    return model.initialize(_images(data).input_shape, ways, generator)


@lru_cache(maxsize=2)
def _initial(model: Model, data: DataSet, ways: int, seed: int) -> Parameters:
    return _initialized(model, data, ways, seed)
