"""SPEAR: exact recovery of a batch from the gradient of a dense layer followed by ReLU.

The gradient of the layer's weight and bias is `G = Z [X, 1]`. Each row of `X (b, n)` is an example, and the matching
column of `Z (m, b)` its coefficients, which are zero at every unit that ReLU switches off for this example. In the
column space of G only few vectors are that sparse, and they determine both factors (Dimitrov et al. 2024, "SPEAR:
exact gradient inversion of batches in federated learning").

The same holds for meta-gradients. With one second-order inner step the learner sends `(I - rate H) v`, where v is the
query set's gradient at the adapted parameters and H the Hessian of the support loss. `v` has the coefficients of
query examples, zero where the *adapted* parameters switch a unit off; `H v`, a derivative of the support set's
gradient, has those of support examples, zero where the parameters *sent by the server* do. So both sets are recovered
together.
"""

from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, GradientRows, from_random_subsets
from metaleak.attacks.layerwise.batches.plausible_examples import from_plausible_examples
from metaleak.attacks.layerwise.batches.pool import Pool
from metaleak.attacks.seeding import generator_for

_BATCH = 20_000
"""The largest number of subsets of units tried at a time."""

_NUMBERS = 2**25
"""The largest number of float64 entries of the subsets tried at a time, 256 MiB."""

_HOPELESS = 1000
"""No subset is tried if the expected number needed exceeds the allowed number by this factor."""

_MOST = 40
"""The largest number of examples that are searched for in one gradient."""

_SWEEPS = 6
"""The largest number of searches by plausible examples."""

_OUTSIDE = 1e-3
"""How far rounding may take a recovered example out of the range of examples."""

_BEYOND = 0.05
"""The share of units at which an example may contradict its coefficients beyond its misfit."""

_SWAPS = 120
"""The number of candidates that are tried in place of each column."""


@dataclass(frozen=True)
class Batch:
    """The recovered examples of one gradient, `inputs (k, n)`, for the k examples whose coefficients were found.

    `active (k, m)` says at which units the example has a nonzero coefficient. `misfit (k,)` is the share of live
    units at which this activity contradicts every example in the row space, and `contradicted (k,)` the share at
    which it contradicts the recovered example; both are 0 for an example that entered the layer at the parameters
    that the server sent. `outside (k,)` is how far an example leaves the range of examples. `complete` says whether
    as many examples were found as the gradient's rank.
    """

    inputs: Tensor
    active: Tensor
    misfit: Tensor
    contradicted: Tensor
    outside: Tensor
    complete: bool

    @property
    def confidence(self) -> Tensor:
        """The confidence in each example, `(k,)` in [0, 1]: 1 if it is in range and fits its coefficients.

        A wrong column makes other examples wrong, which often leave the range or contradict their coefficients, but
        not always: a convex combination of examples is in range, too. So this is a ranking, not a proof. For examples
        that entered the layer at other parameters than those sent, only contradictions beyond the misfit count.
        """
        beyond = _beyond(self.contradicted, self.misfit)
        return torch.exp(-self.outside / _OUTSIDE - beyond / _BEYOND) * float(self.complete)

    @property
    def fits(self) -> bool:
        """Whether all examples were found and lie in the range."""
        return self.complete and bool((self.outside < _OUTSIDE).all())

    def same(self, other: Self) -> bool:
        """Return whether each unit is active for equally many examples in both batches."""
        return torch.equal(self.active.sum(dim=0), other.active.sum(dim=0))


def _beyond(contradicted: Tensor, misfit: Tensor) -> Tensor:
    """Return contradictions beyond the expected ones: examples at other parameters always contradict some units."""
    return torch.where(misfit > 0, 0.0, (contradicted - _BEYOND).clamp(min=0))


def recover(
    gradient: Tensor,
    bias_gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    most: int,
    *,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    samples: int = 400_000,
    programs: int = 12,
    seed: int = 0,
) -> Batch:
    """Return the examples behind `gradient (m, n)` and `bias_gradient (m,)` of a dense layer followed by ReLU.

    `weight (m, n)` and `bias (m,)` are the parameters that the server sent; `most` is the largest possible number of
    examples; `low` and `high` are their range, a number or one per input `(n,)`. At most `samples` random subsets of
    units are tried: with b examples about one in 2^(b-1) yields a column, and none is tried if 2^(b-1) exceeds 1000
    times `samples`. The remaining columns are searched for by plausible examples (see `plausible_examples`), with
    `programs` linear programs for each possible number of missing columns. The search ends when all examples are
    found and in range. With more than 40 examples an empty batch is returned.
    """
    matrix = torch.cat([gradient, bias_gradient[:, None]], dim=1).double()
    row_space = GradientRows.of(matrix, most)
    if row_space is None or not 0 < row_space.rank <= _MOST:
        return _nothing(gradient)
    sent = torch.cat([weight, bias[:, None]], dim=1).double()[row_space.live]
    least, largest = (torch.as_tensor(one, dtype=torch.float64).expand(gradient.shape[1]) for one in (low, high))
    generator = generator_for(seed, "subsets of units")
    batch = max(1, min(_BATCH, _NUMBERS // max(row_space.rank**2, len(row_space.rows))))
    if 2 ** (row_space.rank - 1) > _HOPELESS * samples:
        samples = 0
    pool, before = Pool.empty(row_space), _nothing(gradient)
    for sweep in range(max(_SWEEPS if programs else 1, ceil(samples / batch))):
        if sweep * batch < samples:
            drawn = from_random_subsets(row_space, min(batch, samples - sweep * batch), generator)
            pool = pool.joined(Pool.of(row_space, drawn, sent))
            if programs:
                before = _best(row_space, pool, sent, least, largest)
        if programs and sweep < _SWEEPS:
            pool = _extended(row_space, pool, sent, least, largest, programs, generator)
        best = _best(row_space, pool, sent, least, largest)
        if best.fits and best.same(before):
            break
        before = best
    return best


def _extended(
    row_space: GradientRows,
    pool: Pool,
    sent: Tensor,
    low: Tensor,
    high: Tensor,
    programs: int,
    generator: torch.Generator,
) -> Pool:
    """Return the pool with further columns, found by plausible examples.

    The most likely columns are assumed to be known and the others missing, first many and then fewer, since wrong
    columns are among the least likely.
    """
    missing = row_space.rank
    while missing:
        places = _independent(pool.candidates.columns, row_space.rank)
        if row_space.rank - missing <= len(places):
            known = pool.candidates.columns[places[: row_space.rank - missing]]
            found = from_plausible_examples(row_space, known, sent, low, high, programs, generator)
            if len(found.columns):
                pool = pool.joined(Pool.of(row_space, found, sent))
        missing = min(missing - 1, int(missing / 1.3))
    return pool


def _nothing(gradient: Tensor) -> Batch:
    empty = torch.zeros(0, dtype=torch.float64)
    return Batch(
        empty.reshape(0, gradient.shape[1]),
        torch.zeros(0, len(gradient), dtype=torch.bool),
        empty,
        empty,
        empty,
        False,
    )


def _best(row_space: GradientRows, pool: Pool, sent: Tensor, low: float | Tensor, high: float | Tensor) -> Batch:
    """Return the batch of the most likely independent candidates."""
    found = pool.candidates
    places = _independent(found.columns, row_space.rank)
    complete = len(places) == row_space.rank
    if not complete:
        nothing = torch.zeros(len(places), row_space.basis.shape[1] - 1, dtype=torch.float64)
        unknown = torch.ones(len(places), dtype=torch.float64)
        return Batch(nothing, _active(row_space, found, places), pool.misfit[places], unknown, unknown, False)
    scoring = _Choices(row_space, found, pool.misfit, sent @ row_space.basis.mT, low, high)
    places = _swapped(scoring, places)
    inputs, outside, contradicted = scoring.examples(torch.tensor([places]))
    active = _active(row_space, found, places)
    return Batch(inputs[0], active, pool.misfit[places], contradicted[0], outside[0], True)


def _active(row_space: GradientRows, found: Candidates, places: list[int]) -> Tensor:
    active = torch.zeros(len(places), len(row_space.live), dtype=torch.bool)
    active[:, row_space.live] = ~found.off[places]
    return active


@dataclass(frozen=True)
class _Choices:
    """The scoring of choices of candidates as columns; `features (l, b)` are the layer's parameters in the basis."""

    row_space: GradientRows
    found: Candidates
    misfit: Tensor
    features: Tensor
    low: float | Tensor
    high: float | Tensor

    def examples(self, choices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the examples `(t, b, n)` of `choices (t, b)`, scaled to a bias input of 1, and how far they fit.

        The two further results are `(t, b)`: the root mean square by which each example leaves its range, and the
        share of live units at which its activity differs from that of its coefficients.
        """
        mixing = self.found.columns[choices].mT
        inverse, _ = torch.linalg.inv_ex(mixing)
        inverse = torch.nan_to_num(inverse, nan=0.0, posinf=0.0, neginf=0.0)
        scale = inverse @ self.row_space.basis[:, -1:]
        coordinates = inverse / torch.where(scale == 0, 1e-30, scale)
        inputs = coordinates @ self.row_space.basis[:, :-1]
        far = torch.relu(self.low - inputs) + torch.relu(inputs - self.high)
        outside = torch.nan_to_num(far.square().mean(dim=2).sqrt(), nan=1e6, posinf=1e6).clamp(max=1e6)
        active = coordinates @ self.features.mT > 0
        return inputs, outside, (active == self.found.off[choices]).double().mean(dim=2)

    def implausibility(self, choices: Tensor) -> Tensor:
        """Return how implausible the examples of each choice are, `(t,)`; infinity for dependent columns."""
        _, outside, contradicted = self.examples(choices)
        dependent = torch.linalg.svdvals(self.found.columns[choices])[:, -1] < self.row_space.rank_threshold
        beyond = _beyond(contradicted, self.misfit[choices])
        worst = (outside.clamp(max=1.0) + beyond).sum(dim=1)
        return torch.where(dependent, torch.inf, worst)


def _swapped(scoring: _Choices, places: list[int]) -> list[int]:
    """Return the candidates after exchanging single ones as long as that makes the examples more plausible.

    Linear combinations of columns can be as sparse as columns: in a network of one hidden layer the loss gradients of
    as many examples as classes are linearly dependent, and so are their coefficients at units that all of them switch
    on. A wrong column makes the other examples wrong, so that they leave the range or contradict their coefficients.
    """
    worst = float(scoring.implausibility(torch.tensor([places])))
    improved = True
    while improved and worst > _OUTSIDE:
        improved = False
        for other in range(min(_SWAPS, len(scoring.found.columns))):
            if other in places:
                continue
            trials = torch.tensor([[*places[:place], other, *places[place + 1 :]] for place in range(len(places))])
            values = scoring.implausibility(trials)
            if float(values.min()) < worst - _OUTSIDE:
                places, worst = trials[int(values.argmin())].tolist(), float(values.min())
                improved = True
    return places


def _independent(columns: Tensor, count: int) -> list[int]:
    """Return the indices of the first `count` linearly independent rows of `columns (k, b)`, or of all there are."""
    chosen: list[int] = []
    rest = columns.clone()
    for place in range(len(columns)):
        if len(chosen) == count:
            break
        length = rest[place].norm()
        if length > 1e-4:
            chosen.append(place)
            direction = rest[place] / length
            rest = rest - (rest @ direction)[:, None] * direction
    return chosen
