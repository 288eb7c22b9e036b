"""What one call of an inversion is about: what was seen of L learners, in one round or in several."""

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
"""Bytes of gradients that are held of several rounds at once, at most, or what one learner's take."""


@dataclass(frozen=True)
class Seen:
    """What was seen of L learners in one round: the `parameters` sent, `gradients (L, ...)`, who `answered (L,)`.

    The gradients of those that did not answer are another's and not used.
    """

    parameters: Parameters
    gradients: Parameters
    answered: Tensor


@dataclass(frozen=True)
class Case:
    """What is inverted: the `problem`, what the `rounds` show, the other set where it is `known (L, n, ...)`, a seed.

    Of one round or of several, in which the same L learners hold the same sets. Random starts are drawn by the seed
    and a learner's number in `learners (L,)`, which does not depend on which others are inverted with it.
    """

    problem: Problem
    rounds: tuple[Seen, ...]
    known: Tensor | None
    learners: Tensor
    seed: int

    def views(self, rows: Tensor, input_shape: tuple[int, ...]) -> tuple[View, ...]:
        """Return the rounds in pixels, as inversions of the learners `rows (T,)` see them."""
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
    """Return an observation of some of the rounds' `learners (L,)` alone, what every round shows of these, and more.

    The last are the label positions `(T,)` of all targets that the rounds ask about, -1 where no round can hold one.
    The observation has the gradients of the first round, and of the sets that are known those of each learner's first
    answer. The gradients of one whole round are in memory at a time, beside those of the L learners in all rounds.
    Raises `ValueError` where learners draw new episodes or classes: no one set explains them.
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
    """Return a round's observation of some `learners (L,)`, what it shows of them, and all targets' positions."""
    if not round.sets_last:
        raise ValueError(
            "an inversion over rounds looks for one set of images, and learners draw new ones in every round"
        )
    rows, observation = round.rows[learners], round.observation

    def of(values: Tensor) -> Tensor:
        # Where none of the learners answered there is no row to stand in.
        return values[rows.clamp(min=0)] if len(values) else values.new_zeros((len(rows), *values.shape[1:]))

    gradients = {name: of(value) for name, value in observation.gradients.items()}
    support, query = (
        None if known is None else of(known) for known in (observation.known_support, observation.known_query)
    )
    few = replace(observation, gradients=gradients, known_support=support, known_query=query, classes=None, rest=None)
    return few, Seen(observation.parameters, gradients, rows >= 0), round.positions


def learners_at_a_time(rounds: Rounds) -> Sequence[Tensor]:
    """Return the learners of the rounds in groups whose gradients in all rounds may be held together.

    Every group reads every round again: with G groups and R rounds, G R rounds are read and not held.
    """
    first = rounds[0]
    each = sum(value[0].numel() * value.element_size() for value in first.observation.gradients.values())
    everyone = torch.arange(len(first.rows), device=first.rows.device)
    return torch.split(everyone, max(1, _HELD // (each * len(rounds))))


def _same_in_all(positions: Tensor) -> Tensor:
    """Return each target's label position `(T,)` in the rounds `positions (R, T)`, -1 where no round can hold it.

    Raises `ValueError` where a class stands at one position in one round and at another in the next.
    """
    position = positions.amax(dim=0)
    if bool(((positions >= 0) & (positions != position)).any()):
        raise ValueError(
            "an inversion over rounds looks for one set of images, and learners' classes change from round to round"
        )
    return position
