"""The truth about membership, rebuilt from the experiment's seed; for the evaluation only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.attack import Targets
from metaleak.attacks.observation import Rest
from metaleak.clients.federation import Federation
from metaleak.clients.randomness import keyed_generator
from metaleak.clients.shard import Draw
from metaleak.deploy.config.experiment import Experiment, TargetSettings
from metaleak.server import MetaLearner


class NoNonMembers(ValueError):
    """Raised when every image is held by some learner, so that there are no non-members."""


SETS: tuple[Literal["query", "support"], ...] = ("query", "support")


@dataclass(frozen=True, eq=False)
class Truth:
    """The targets of an attack, together with the truth about them.

    All tensors are `(T,)` int64, except `member`, which is bool. For each target they have the number of its
    `learner`, the `position` in the learner's task, the `example` as an index into the data set, its class `label`,
    and `held`, the example that the learner really holds at that position.
    """

    learner: Tensor
    position: Tensor
    example: Tensor
    label: Tensor
    held: Tensor
    member: Tensor

    def targets(self, federation: Federation, learners: Sequence[int]) -> Targets:
        """Return the targets as an attack gets them; `learners` are the rows of its observation."""
        row_of = {learner: row for row, learner in enumerate(learners)}
        return Targets(
            examples=inputs(federation, self.example),
            rows=torch.tensor([row_of[learner] for learner in self.learner.tolist()]),
            positions=self.position,
        )


def inputs(federation: Federation, places: Tensor) -> Tensor:
    """Return the examples at these places in the data set as the learners see them, `(n, ...)`."""
    return federation.examples().inputs(places)


def ask(
    federation: Federation,
    learners: Sequence[int],
    round: int,
    asks: Literal["query", "support"],
    settings: TargetSettings,
) -> Truth:
    """Return the targets of one attack on one round.

    `learners` answered in `round`; see `ask_over`.
    """
    return ask_over(federation, {round: learners}, asks, settings)


def ask_over(
    federation: Federation,
    answered: Mapping[int, Sequence[int]],
    asks: Literal["query", "support"],
    settings: TargetSettings,
) -> Truth:
    """Return the targets of one attack on the rounds of `answered`, which gives the learners that answered in each.

    At most `settings.members` members are drawn from what learners held in any round in which they answered.
    Non-members are images that no learner ever holds. Each is assigned to a drawn learner and position with an image
    of its class, so that members and non-members have the same classes as long as there are enough images. A position
    is that of the first round in which the learner holds the image. Raises `NoNonMembers` when there are none.
    """
    generator = keyed_generator(federation.seed, next(iter(answered)), "targets", asks)
    first: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for round, learners in answered.items():
        for one in learners:
            drawn = federation.learner(one).drawn(round)
            for place, images in enumerate(_asked(drawn, asks).tolist()):
                for image in images:
                    first.setdefault((one, image), (one, place, image, int(drawn.classes[place])))
    held = list(first.values())
    order = torch.randperm(len(held), generator=generator).tolist()
    members = [held[place] for place in order[: settings.members]]
    outsiders = _outsiders(federation, [held[place] for place in order], settings.non_members, generator)
    if not outsiders:
        raise NoNonMembers("no learner's class has an image that no learner holds; raise partition.non_members")
    asked = [(*row, row[2], True) for row in members] + [(*row, image, False) for row, image in outsiders]
    # An attack must not learn from the order of its targets.
    shuffled = [asked[place] for place in torch.randperm(len(asked), generator=generator).tolist()]
    columns = [torch.tensor(column) for column in zip(*shuffled, strict=True)]
    learner, position, truly_held, label, image, member = columns
    return Truth(learner, position, image, label, truly_held, member)


def used_in_training(experiment: Experiment) -> Tensor:
    """Return which examples of the data set the training of a finished run used, booleans `(N,)`.

    These are the examples in the support or query set of a sampled learner in a round in which it answered, and not
    everything that learners hold. A learner that failed by itself, and not by the experiment's `faults`, is assumed
    to have answered.
    """
    federation, server = experiment.federation(), experiment.server
    used = torch.zeros(len(federation.examples().labels), dtype=torch.bool)
    sampling = MetaLearner(experiment.partition.learners, fraction=server.fraction, seed=experiment.seed)
    lasting, known = experiment.partition.fixed_sets(experiment.task), set()
    for round in range(1, server.rounds + 1):
        for learner in sampling.sample(round):
            if learner in known or federation.faults.absence(federation.seed, round, learner) is not None:
                continue
            drawn = federation.learner(learner).drawn(round)
            for which in SETS:
                used[_asked(drawn, which).flatten()] = True
            if lasting:
                known.add(learner)
    return used


def _outsiders(
    federation: Federation, held: list[tuple[int, int, int, int]], count: int, generator: torch.Generator
) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return at most `count` of `held` (learner, position, image, class), each with a non-member of its class.

    No image is used twice, so that every non-member is new evidence. The entries of `held` are used in turn, as long
    as their class has images left.
    """
    indices = federation.split().non_members
    labels = federation.examples().labels[indices]
    pools = {
        label: pool[torch.randperm(len(pool), generator=generator)].tolist()
        for label in sorted({row[3] for row in held})
        for pool in [indices[labels == label]]
    }
    asked: list[tuple[tuple[int, int, int, int], int]] = []
    while len(asked) < count and any(pools.values()):
        asked += [(row, pools[row[3]].pop()) for row in held if pools[row[3]]][: count - len(asked)]
    return asked


def positions_in(federation: Federation, truth: Truth, round: int, learners: Sequence[int]) -> Tensor:
    """Return the position `(T,)` at which each target's class stands in its learner's task of `round`, or -1.

    It is -1 for every learner but `learners`, and where the task has no such class.
    """
    drawn = {learner: federation.learner(learner).drawn(round).classes.tolist() for learner in learners}
    places = [
        classes.index(label) if label in (classes := drawn.get(learner, [])) else -1
        for learner, label in zip(truth.learner.tolist(), truth.label.tolist(), strict=True)
    ]
    return torch.tensor(places)


def chances_of_a_draw(federation: Federation, learners: Sequence[int], which: Literal["query", "support"]) -> Tensor:
    """Return for each learner the probability that an image of its shard is in the set `which` of a round, `(L,)`.

    This is for rounds whose task has the image's class. With several episodes per message, it is the probability that
    any of them has the image.
    """
    task = federation.task
    drawn, needed = (task.queries if which == "query" else task.shots), task.shots + task.queries
    shards = federation.split().shards
    held = [shards[learner].examples.shape[1] for learner in learners]
    return torch.tensor(
        [1.0 if size == needed else 1 - (1 - drawn / size) ** task.episodes_per_message for size in held],
        dtype=torch.float64,
    )


def held_inputs(
    federation: Federation, learners: Sequence[int], round: int, which: Literal["query", "support"]
) -> Tensor:
    """Return the set `which` of every learner, `(L, n, C, H, W)`, for an adversary that knows it."""
    indices = [_asked(federation.learner(learner).drawn(round), which).flatten() for learner in learners]
    return torch.stack([inputs(federation, images) for images in indices])


def rest_of_sets(federation: Federation, truth: Truth, round: int, which: Literal["query", "support"]) -> Rest:
    """Return the rest of every target's set in `round`, for a threat model in which all but one image is known.

    The adversary gets two candidates for the missing image, one of which the learner holds. The alternative to a
    non-member is the image that the learner holds; the alternative to a member is an image of its class that nobody
    holds. Raises `ValueError` when there is no alternative, or when a learner does not hold the image at that place
    in `round` because it draws new episodes from round to round.
    """
    drawn = {
        learner: _asked(federation.learner(learner).drawn(round), which) for learner in set(truth.learner.tolist())
    }
    sets = torch.stack([drawn[learner] for learner in truth.learner.tolist()])
    there = (sets == truth.held[:, None, None]) & (
        torch.arange(sets.shape[1])[None, :, None] == truth.position[:, None, None]
    )
    if not bool(there.flatten(1).any(dim=1).all()):
        raise ValueError(
            f"learners draw other episodes in round {round}, so that the asked image may be in none of their sets: "
            "leave partition.examples_per_class and classes_per_learner out, or attack one round"
        )
    slots = there.flatten(1).int().argmax(dim=1)
    images = inputs(federation, sets.flatten())
    images = images.reshape(len(sets), sets.shape[1] * sets.shape[2], *images.shape[1:])
    images[torch.arange(len(sets)), slots] = 0
    return Rest(images, slots, inputs(federation, _alternatives(federation, truth)))


def _alternatives(federation: Federation, truth: Truth) -> Tensor:
    """Return for each target the other one of its two candidates, which is the same in every round."""
    indices = federation.split().non_members
    labels = federation.examples().labels[indices]
    generator = keyed_generator(federation.seed, "alternatives")
    others = truth.held.clone()
    for label in sorted(set(truth.label[truth.member].tolist())):
        pool = indices[labels == label]
        if not len(pool):
            raise ValueError(f"class {label} has no image that no learner holds; raise partition.non_members")
        asked = truth.member & (truth.label == label)
        others[asked] = pool[torch.randint(len(pool), (int(asked.sum()),), generator=generator)]
    return others


def held_classes(federation: Federation, learners: Sequence[int], round: int) -> Tensor:
    """Return every learner's class at each position of its task, `(L, ways)` int64."""
    return torch.stack([federation.learner(learner).drawn(round).classes for learner in learners])


def held_lengths(federation: Federation, learners: Sequence[int], round: int) -> Tensor:
    """Return the number of tokens of each sentence, `(L, n)` int64: the support sets, then the query sets."""
    sentences = torch.cat([held_inputs(federation, learners, round, which) for which in ("support", "query")], dim=1)
    padding = federation.examples().padding
    if padding is None:
        return torch.full(sentences.shape[:2], sentences.shape[2])
    return (sentences != padding).sum(dim=-1)


def _asked(drawn: Draw, which: Literal["query", "support"]) -> Tensor:
    return drawn.query if which == "query" else drawn.support
