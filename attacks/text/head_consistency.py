"""Which tokens belong to the same sentence, according to the gradient of a query matrix.

In each head, the derivative with respect to a token's query is a linear combination of the keys of its own sentence
with coefficients that sum to 0, as the softmax implies. Given the inputs, the gradient determines these derivatives,
and the model determines the keys. An assignment of tokens to sentences is therefore better the less of the
derivatives lies outside the span of the differences of the keys. A sentence with more tokens than a head has
dimensions cannot be assessed.
"""

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.input_space import InputSpace
from metaleak.attacks.text.sentences import Sentence

_DEPENDENT = 1e-9
"""Inputs are linearly dependent if their smallest singular value is below this fraction of the largest."""


_ALL_SHARED = 1e-3
"""Cost of a sentence whose tokens all occur in other sentences, too, so that it cannot be assessed."""


class HeadConsistency:
    """The part of the derivatives with respect to sentences' queries outside the span of their keys, head by head.

    Sentences consist of `candidates`. `gradient (units, d)` is the gradient of a matrix, and `space` the input space
    that it determines. `keys (n, d)` are the candidates' keys, in `heads` heads, if the matrix is the query matrix;
    `None` for any other matrix, from which sentences cannot be assessed. If the candidates' inputs are linearly
    dependent, as those of (t1, p1), (t1, p2), (t2, p1), (t2, p2) may be, the derivatives are fitted to the tokens of
    the given sentences only, and the residual of the gradient is added to the cost. `untold` is the cost of a
    sentence that cannot be assessed.
    """

    def __init__(
        self,
        candidates: Candidates,
        space: InputSpace,
        gradient: Tensor,
        keys: Tensor | None,
        heads: int,
        untold: float = 1.0,
    ) -> None:
        self._inputs = candidates.inputs @ space.basis.mT
        self._untold = untold
        self.rank = len(space.basis)
        self._gradient = (gradient.double() @ space.basis.mT).mT
        self._keys = None if keys is None else keys.reshape(len(self._inputs), heads, -1)
        values = torch.linalg.svdvals(self._inputs)
        self.dependent = len(self._inputs) > len(space.basis) or bool(values[-1] < _DEPENDENT * values[0])
        self._solved: dict[frozenset[int], tuple[Tensor, float]] = {}
        self._kept: dict[tuple[Sentence, frozenset[int], frozenset[int]], float] = {}
        self._every = frozenset(range(len(self._inputs)))

    def __call__(self, sentences: list[Sentence]) -> list[float]:
        """Return the cost of each sentence: the fraction of its squared derivatives outside the span, or `untold`."""
        counted: dict[int, int] = {}
        for one in (one for sentence in sentences for one in sentence):
            counted[one] = counted.get(one, 0) + 1
        used = frozenset(counted) if self.dependent else self._every
        left = self._derivatives(used)[1] if self.dependent else 0.0
        shared = frozenset(one for one, count in counted.items() if count > 1)
        return [left + self._outside(sentence, shared.intersection(sentence), used) for sentence in sentences]

    def strengths(self, known: Tensor | None = None, power: float = 0.95, iterations: int = 60) -> Tensor:
        """Return the norms of the sparsest derivatives that yield the gradient, `(n,)`.

        They minimize the sum of the norms raised to `power`, below 1, by iteratively reweighted least squares
        ("FOCUSS", Gorodnitsky and Rao 1997; here over rows). Candidates that are `known (n,)` to be present do not
        count in the sum.
        """
        system = self._inputs.mT
        found = torch.linalg.lstsq(system, self._gradient, driver="gelsy").solution
        identity = torch.eye(len(system), dtype=torch.float64)
        for _ in range(iterations):
            weights = found.norm(dim=1).clamp(min=1e-14) ** (2 - power)
            if known is not None:
                weights = torch.where(known, weights.max(), weights)
            square = (system * weights) @ system.mT
            square = square + identity * (1e-14 * square.trace() / len(system))
            found = weights[:, None] * (system.mT @ torch.linalg.lstsq(square, self._gradient).solution)
        norms: Tensor = found.norm(dim=1)
        return norms

    def _derivatives(self, used: frozenset[int]) -> tuple[Tensor, float]:
        """Return the derivatives `(n, units)` if only candidates `used` are present, and the relative residual."""
        if used not in self._solved:
            order = sorted(used)
            solution = torch.linalg.lstsq(self._inputs[order].mT, self._gradient, driver="gelsy").solution
            every = torch.zeros(len(self._inputs), self._gradient.shape[1], dtype=torch.float64)
            every[order] = solution
            rest = self._gradient - self._inputs.mT @ every
            left = float(rest.square().sum() / self._gradient.square().sum())
            self._solved = {used: (every, left)} | ({} if self.dependent else self._solved)
        return self._solved[used]

    def _outside(self, sentence: Sentence, shared: frozenset[int], used: frozenset[int]) -> float:
        key = sentence, shared, used if self.dependent else self._every
        if key not in self._kept:
            own = [one for one in sentence if one not in shared]
            self._kept[key] = self._of_heads(sentence, own, used)
        return self._kept[key]

    def _of_heads(self, sentence: Sentence, own: list[int], used: frozenset[int]) -> float:
        if self._keys is None or not 1 < len(sentence) <= self._keys.shape[2]:
            return self._untold
        if not own:
            return _ALL_SHARED
        keys = self._keys[list(sentence)]
        basis, _ = torch.linalg.qr((keys[1:] - keys[:1]).permute(1, 2, 0))
        derivatives = self._derivatives(used)[0][own].reshape(len(own), *keys.shape[1:]).permute(1, 0, 2)
        outside = derivatives - derivatives @ basis @ basis.mT
        parts = outside.square().sum(dim=(0, 2)) / derivatives.square().sum(dim=(0, 2)).clamp(min=1e-300)
        return float(parts.mean())
