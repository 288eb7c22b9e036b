"""The data of an offline adversary: the messages of a round, and its further knowledge."""

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
    """The messages of one round that a server sent to L learners and received from them.

    `sent` are the parameters by name; `received` are the replies' arrays by name, stacked `(L, ...)`, for the shared
    parameters. `holds` says whether these are gradients, weights or differences of weights. `learners` are the
    learners' numbers, by row.

    `mean_of` is 1 if the server saw each learner's own reply. Otherwise, under secure aggregation, every row is the
    same mean over `mean_of` learners, among them the L.
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
        """Return the recorded messages of `learners` (default: all that answered) in `round`, in their order.

        Under secure aggregation all rows are views of the one mean. `holds` is read from the record if it is not
        given. Raises `RecordError` for a round that cannot be read, and `ValueError` for a learner that did not
        answer in it or if the record does not state what replies hold.
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
        """Return the gradients that follow from the replies, `(L, ...)`.

        Gradients are returned as they are. Otherwise the result is the sent minus the new parameters, divided by
        `rates`, a number or one per learner `(L,)`: with the local learning rate this is the sum of a learner's local
        gradients, with the rate times the number of local steps it is their mean.
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
    """The rest of the attacked set around each of T targets, for the adversary of differential privacy.

    `images (T, n, C, H, W)` are the attacked sets, ordered by position, with zeros at the indices `slots (T,)` int64,
    where the learner holds either the target or the image in `alternatives (T, C, H, W)`, which has the same class.
    """

    images: Tensor
    slots: Tensor
    alternatives: Tensor


@dataclass(frozen=True)
class Observation(Tensors):
    """The gradients of L learners in one round, and the adversary's further knowledge under the threat model.

    `parameters` are those that the server sent; `gradients` are the learners' (see `Update.gradients`), stacked
    `(L, ...)`. The task's shape and the `input_shape` of an example are always known. Everything else is given only
    if the attack `requires` it: `known_support (L, ways*shots, C, H, W)` and
    `known_query (L, ways*queries, C, H, W)`, ordered by position; `classes (L, ways)` int64; `lengths (L, n)` int64,
    the numbers of tokens in the n sentences of support and query set; `own_examples (N, C, H, W)` in [0, 1] with the
    classes `own_labels (N,)`; `defenses`, an empty tuple if there are none; and the `rest` of the set around every
    target. `mean_of` is that of the `Update`. Each gradient is the mean over `episodes` episodes with the same
    classes; then `shots` and `queries` are totals over all episodes, and known sets contain the images of all.
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
