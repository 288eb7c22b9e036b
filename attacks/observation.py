"""What an offline adversary has: the messages of a round, and its knowledge beyond them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.tensors import Tensors
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules import Rule
from metaleak.defenses import Defense
from metaleak.server.record.layout import Holds
from metaleak.server.record.reader import Record


@dataclass(frozen=True)
class Update(Tensors):
    """What a server sent to L learners in one round, and what it received from them.

    `sent` are the parameters by name; `received` the replies' arrays by name, stacked `(L, ...)`, for the
    parameters that are shared. `holds` says whether these are gradients, weights or differences. `learners` are
    their numbers, by row.

    `mean_of` is the number of learners over which each row is the mean: 1 where the server saw each one's own.
    Otherwise, under secure aggregation, every row is the same mean over that many learners, of which the L are some.
    """

    sent: Parameters
    received: Parameters
    holds: Holds = "gradient"
    learners: tuple[int, ...] = ()
    mean_of: int = 1

    @classmethod
    def of_record(
        cls, record: Record, round: int, learners: Sequence[int] | None = None, holds: Holds | None = None
    ) -> Self:
        """Return what was recorded in `round` of `learners` (default: all that answered), in their order.

        Under secure aggregation all rows are views of the one mean. What the replies hold is read from the record
        where it is not given. Raises `RecordError` for a round that cannot be read, `ValueError` for a learner that
        did not answer in it, and where it is not known what the replies hold.
        """
        kind = holds or record.holds
        if kind is None:
            raise ValueError(f"{record.path}: does not state what replies hold: gradient, delta or weights")
        present, arrays = record.received(round)
        mean_of = record.mean_of(round)
        asked = list(learners) if learners is not None else list(mean_of or present)
        received = {name: torch.from_numpy(value) for name, value in arrays.items()}
        row_of = {learner: row for row, learner in enumerate(mean_of or present)}
        missing = [learner for learner in asked if learner not in row_of]
        if missing:
            raise ValueError(f"{record.path}: learner {missing[0]} did not answer in round {round}")
        if mean_of:
            seen = {name: value.expand(len(asked), *value.shape[1:]) for name, value in received.items()}
        else:
            rows = torch.tensor([row_of[learner] for learner in asked])
            seen = {name: value[rows] for name, value in received.items()}
        sent = {name: torch.from_numpy(value) for name, value in record.sent(round).items()}
        return cls(sent, seen, kind, tuple(asked), max(1, len(mean_of)))

    def gradients(self, rates: Tensor | float = 1.0) -> Parameters:
        """Return the gradients that the replies amount to, `(L, ...)`.

        Replies that hold gradients are returned as they are. Otherwise it is the sent minus the new parameters, over
        `rates`, a number or one for each learner `(L,)`: with the local learning rate this is the sum of a learner's
        local gradients, with the rate times the number of local steps their mean.
        """
        if self.holds == "gradient":
            return self.received

        def over_rates(change: Tensor) -> Tensor:
            return change / (rates.reshape(-1, *[1] * (change.ndim - 1)) if isinstance(rates, Tensor) else rates)

        if self.holds == "delta":
            return {name: over_rates(-value) for name, value in self.received.items()}
        return {name: over_rates(self.sent[name] - value) for name, value in self.received.items()}


@dataclass(frozen=True)
class Rest(Tensors):
    """The knowledge around T targets, row for row, of an adversary who knows everything but the asked image.

    `images (T, n, C, H, W)`: the set that is asked about, ordered by position, with zeros in the place `slots (T,)`
    int64, where the learner holds either the asked image or the alternative; `alternatives (T, C, H, W)` are of the
    same class. Which of the two it holds is the question.
    """

    images: Tensor
    slots: Tensor
    alternatives: Tensor


@dataclass(frozen=True)
class Observation(Tensors):
    """The gradients of L learners in one round, and what the threat model lets the adversary know beside them.

    `parameters` are what the server sent; `gradients` what the learners' replies amount to, stacked `(L, ...)`. The
    task's shape is known, and the `input_shape` of an example. All else is given only where the attack `requires` it:
    `known_support (L, ways*shots, C, H, W)` and `known_query (L, ways*queries, C, H, W)`, ordered by position;
    `classes (L, ways)` int64; `lengths (L, n)` int64, how many tokens the n sentences of support and query set have;
    `own_examples (N, C, H, W)` in [0, 1] with the classes `own_labels (N,)`; `defenses`,
    of which an empty tuple says that there are none; the `rest` of the set around every target. `mean_of` is that of
    the `Update`. Each gradient is the mean over `episodes` episodes of the same classes, of which `shots` and
    `queries` count all images together; what is known of a set has them side by side.
    """

    model: Model
    rule: Rule
    parameters: Parameters
    gradients: Parameters
    ways: int
    shots: int
    queries: int
    known_support: Tensor | None = None
    known_query: Tensor | None = None
    classes: Tensor | None = None
    lengths: Tensor | None = None
    own_examples: Tensor | None = None
    own_labels: Tensor | None = None
    defenses: tuple[Defense, ...] | None = None
    rest: Rest | None = None
    mean_of: int = 1
    input_shape: tuple[int, ...] = ()
    episodes: int = 1
