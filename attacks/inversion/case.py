"""The input of an inversion: the gradients of L learners in one round or in several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaleak.attacks.inversion.gradient_inversion import Problem, View
from metaleak.attacks.inversion.image_space import pixels
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round, Rounds
from metaleak.clients.episode import Parameters

_HELD = 1 << 28
"""The largest number of bytes of gradients of several rounds in memory, if it is enough for one learner's."""


@dataclass(frozen=True)
class Seen:
    """L learners in one round: the `parameters` sent to them, their `gradients (L, ...)`, and which `answered (L,)`.

    The rows of learners that did not answer have other learners' gradients and are not used.
    """

    parameters: Parameters
    gradients: Parameters
    answered: Tensor


@dataclass(frozen=True)
class Case:
    """The input of an inversion, in which the same L learners hold the same sets in all `rounds`.

    `known (L, n, ...)` is the set that is not attacked, if it is known. Random starts depend on the seed and on a
    learner's number in `learners (L,)`, and so not on which other learners are inverted with it.
    """

    problem: Problem
    rounds: tuple[Seen, ...]
    known: Tensor | None
    learners: Tensor
    seed: int

    def views(self, rows: Tensor, input_shape: tuple[int, ...]) -> tuple[View, ...]:
        """Return the rounds, in pixels, for inversions of the learners `rows (T,)`."""
        return tuple(
            View(
                pixels(seen.parameters, {name: value[rows] for name, value in seen.gradients.items()}, input_shape),
                seen.answered[rows].to(next(iter(seen.gradients.values())).dtype),
            )
            for seen in self.rounds
        )


def one_round(observation: Observation) -> tuple[Seen, ...]:
    """Return the one round of an observation, in which all of its learners answered."""
    one = next(iter(observation.gradients.values()))
    answered = torch.ones(len(one), dtype=torch.bool, device=one.device)
    return (Seen(observation.parameters, observation.gradients, answered),)


def several_rounds(rounds: Rounds, learners: Tensor) -> tuple[Observation, tuple[Seen, ...], Tensor]:
    """Return an observation of some of the rounds' `learners (L,)`, their rounds, and the targets' positions.

    The positions `(T,)` are those of all targets of the rounds, -1 for a target that no round's sets can contain. The
    observation has the gradients of the first round, and known sets from each learner's first answer. In memory are
    the gradients of one whole round at a time, and those of the L learners in all rounds. Raises `ValueError` if
    learners draw new episodes or classes, so that no single set fits all rounds.
    """
    observation, one, places = _of_learners(rounds[0], learners)
    seen, positions, waiting = [one], [places], ~one.answered
    for number in range(1, len(rounds)):
        later, one, places = _of_learners(rounds[number], learners)
        fresh = waiting & one.answered
        for name in ("known_support", "known_query"):
            if (known := getattr(observation, name)) is not None:
                known[fresh] = getattr(later, name)[fresh]
        waiting = waiting & ~one.answered
        seen.append(one)
        positions.append(places)
    return observation, tuple(seen), _same_in_all(torch.stack(positions))


def _of_learners(round: Round, learners: Tensor) -> tuple[Observation, Seen, Tensor]:
    """Return a round's observation of some `learners (L,)`, their gradients, and all targets' positions."""
    if not round.fixed_sets:
        raise ValueError(
            "an inversion over rounds needs the same images in all rounds, but learners draw new ones in every round"
        )
    rows, observation = round.rows[learners], round.observation

    def of(values: Tensor) -> Tensor:
        # If no learner at all answered, there is no row to use in place of missing ones.
        return values[rows.clamp(min=0)] if len(values) else values.new_zeros((len(rows), *values.shape[1:]))

    gradients = {name: of(value) for name, value in observation.gradients.items()}
    support, query = (
        None if known is None else of(known) for known in (observation.known_support, observation.known_query)
    )
    few = replace(observation, gradients=gradients, known_support=support, known_query=query, classes=None, rest=None)
    return few, Seen(observation.parameters, gradients, rows >= 0), round.positions


def learners_at_a_time(rounds: Rounds) -> Sequence[Tensor]:
    """Return the learners of the rounds in groups whose gradients in all rounds fit into memory together.

    Every group reads every round again: with G groups and R rounds, G R rounds are read.
    """
    first = rounds[0]
    each = sum(value[0].numel() * value.element_size() for value in first.observation.gradients.values())
    everyone = torch.arange(len(first.rows), device=first.rows.device)
    return torch.split(everyone, max(1, _HELD // (each * len(rounds))))


def _same_in_all(positions: Tensor) -> Tensor:
    """Return each target's label position `(T,)` from `positions (R, T)`, -1 if no round's sets can contain it.

    Raises `ValueError` if a target's class has different positions in different rounds.
    """
    position = positions.amax(dim=0)
    if bool(((positions >= 0) & (positions != position)).any()):
        raise ValueError(
            "an inversion over rounds needs the same tasks in all rounds, but learners' classes change between them"
        )
    return position
