"""Query access to a released model: limits on the number of queries, checks of answers, and their visible part."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

Access = Literal["all", "label"] | int
"""The visible part of an answer: all probabilities, the k largest, or only the most likely class (`label`)."""

_SUM_WITHIN = 1e-3
"""How far the sum of probabilities may be from 1: half precision rounds by as much."""


@runtime_checkable
class Query(Protocol):
    """A released model that can be queried; nothing else of it is visible."""

    def predict(self, inputs: Tensor, /) -> Tensor:
        """Return the probabilities of its K classes for `inputs (B, ...)`, `(B, K)`; rows add up to 1."""
        ...


class BudgetSpent(Exception):
    """The budget has too few queries left."""


class Metered:
    """A `Query` that takes at most `budget` inputs in total and `per_second` inputs a second (`None`: no limit).

    `spent` is the number of inputs so far. Raises `ValueError` for a limit that is not positive.
    """

    def __init__(
        self,
        query: Query,
        budget: int | None = None,
        per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f"budget: must be at least 1 query, got {budget}")
        if per_second is not None and not per_second > 0:
            raise ValueError(f"per_second: must be above 0, got {per_second}")
        self._query, self._budget, self._per_second = query, budget, per_second
        self._clock, self._sleep = clock, sleep
        self._free_at = clock()
        self.spent = 0

    @property
    def left(self) -> int | None:
        """The number of inputs left in the budget; `None` without a budget."""
        return None if self._budget is None else self._budget - self.spent

    def predict(self, inputs: Tensor, /) -> Tensor:
        """Return the model's answer; raises `BudgetSpent`, without a query, if `inputs` exceed what is left."""
        if self.left is not None and len(inputs) > self.left:
            raise BudgetSpent(f"the budget of {self._budget} queries is used up")
        if self._per_second is not None:
            now = self._clock()
            if now < self._free_at:
                self._sleep(self._free_at - now)
            self._free_at = max(now, self._free_at) + len(inputs) / self._per_second
        self.spent += len(inputs)
        return self._query.predict(inputs)


@dataclass(frozen=True)
class QueryResult:
    """The answers to n queries: `probabilities (n, K)` float64 in [0, 1], with rows of NaN for missing answers.

    `complaint` says in one line which answers are missing and why; it is empty if none is.
    """

    probabilities: Tensor
    complaint: str = ""

    @property
    def answered(self) -> Tensor:
        """Which queries have an answer, booleans `(n,)`."""
        return ~self.probabilities.isnan().any(dim=-1)


def ask(query: Query, inputs: Tensor, classes: int, at_once: int = 100) -> QueryResult:
    """Return the answers of `query` to `inputs (n, ...)`, in batches of `at_once`, over K = `classes` classes.

    A row that is not a probability vector is lost alone; an error or a wrong shape loses its whole batch; when the
    budget is used up, all remaining queries are lost. Raises `ValueError`, in one line, if no query was answered.
    """
    found = torch.full((len(inputs), classes), torch.nan, dtype=torch.float64)
    troubles: Counter[str] = Counter()
    begin = 0
    while begin < len(inputs):
        batch = inputs[begin : begin + at_once]
        if isinstance(query, Metered) and query.left:
            batch = batch[: query.left]
        try:
            answer = _checked_shape(query.predict(batch), len(batch), classes)
        except BudgetSpent as spent:
            troubles[str(spent)] += len(inputs) - begin
            break
        except Exception as error:  # noqa: BLE001 (somebody else's model may raise anything)
            troubles[_line(error)] += len(batch)
        else:
            wrong = _wrong_rows(answer, troubles)
            # Rounding leaves numbers a little below 0 or above 1, whose log odds would not be finite.
            found[begin : begin + len(batch)] = answer.clamp(0, 1).masked_fill(wrong[:, None], torch.nan)
        begin += len(batch)
    lost = sum(troubles.values())
    if not lost:
        return QueryResult(found)
    reasons = "; ".join(f"{count}: {reason}" for reason, count in troubles.most_common(3))
    complaint = f"predict: {lost} of {len(inputs)} queries have no answer ({reasons})"
    if lost == len(inputs):
        raise ValueError(complaint)
    return QueryResult(found, complaint)


def restricted(probabilities: Tensor, access: Access) -> Tensor:
    """Return `probabilities (..., K)` as an adversary with this `access` reconstructs them from the visible part.

    If only the k largest are visible, the rest of the probability mass is spread evenly over the other classes
    (Abascal et al. 2024, top-k access); if only the most likely class is, it gets probability 1. Rows of NaN stay
    NaN. Raises `ValueError` for `access` below 1.
    """
    if access == "all":
        return probabilities
    classes = probabilities.shape[-1]
    if access == "label":
        label = F.one_hot(probabilities.nan_to_num(0).argmax(-1), classes).to(probabilities.dtype)
        return label.masked_fill(probabilities.isnan().any(-1, keepdim=True), torch.nan)
    if access < 1:
        raise ValueError(f"access: must be all, label, or a number of probabilities of at least 1, got {access}")
    if access >= classes:
        return probabilities
    values, places = probabilities.topk(access, dim=-1)
    rest = (1 - values.sum(-1, keepdim=True)).clamp(min=0) / (classes - access)
    return rest.expand_as(probabilities).scatter(-1, places, values)


def _checked_shape(answer: object, count: int, classes: int) -> Tensor:
    if answer is None:
        raise ValueError("returned nothing")
    found = torch.as_tensor(answer).detach().to("cpu", torch.float64)
    if found.ndim == 2 and found.shape[0] == count and found.shape[1] != classes:
        raise ValueError(f"returned {found.shape[1]} classes, not {classes}")
    if found.shape != (count, classes):
        raise ValueError(f"returned the shape {tuple(found.shape)}, not {(count, classes)}")
    return found


def _wrong_rows(answer: Tensor, troubles: Counter[str]) -> Tensor:
    no_number = ~answer.isfinite().all(dim=1)
    off = ((answer.sum(dim=1) - 1).abs() > _SUM_WITHIN) | (answer < -_SUM_WITHIN).any(dim=1)
    for rows, reason in (
        (no_number, "returned NaN or an infinite number"),
        (off & ~no_number, "returned scores that are not probabilities: they must be at least 0 and add up to 1"),
    ):
        if count := int(rows.sum()):
            troubles[reason] += count
    return no_number | off


def _line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")[:200]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
