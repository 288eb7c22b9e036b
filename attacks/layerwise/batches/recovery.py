"""SPEAR: the examples behind one gradient of a dense layer followed by ReLU, exactly and all of a batch.

The gradient of the layer's weight and bias is `G = Z [X, 1]`: a row of `X (b, n)` an example, a column of `Z (m, b)`
its coefficients, which are zero for every unit that ReLU switches off at this example. Of all `Z P` with the column
space of G only few columns are so sparse, and they fix the factors (Dimitrov et al. 2024, "SPEAR: exact gradient
inversion of batches in federated learning").

The same holds for meta-gradients. One second-order inner step sends `(I - rate H) v`, v the query set's gradient
at the adapted parameters: `v` has the query examples' coefficients, zero where the *adapted* parameters switch a unit
off, and `H v`, a derivative of the support set's gradient, those of the support examples, zero where the *sent* ones
do. So support and query examples are recovered together.
"""

from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
from torch import Tensor

from metaleak.attacks.layerwise.batches.candidates import Candidates, Spectrum, separated
from metaleak.attacks.layerwise.batches.in_range import by_examples
from metaleak.attacks.layerwise.batches.pool import Pool
from metaleak.attacks.seeding import generator_for

_BATCH = 20_000
"""Subsets of units that are tried at a time at most."""

_NUMBERS = 2**25
"""Numbers in float64 that the subsets tried at a time may take, 256 MiB."""

_HOPELESS = 1000
"""How many times more subsets than may be tried must be expected to be needed, for none to be tried."""

_MOST = 40
"""Examples of one gradient that are looked for at most."""

_SWEEPS = 6
"""How often columns are looked for by way of examples in their range at most."""

_OUTSIDE = 1e-3
"""By how much a recovered example may leave the range of examples: rounding does not bring it further."""

_BEYOND = 0.05
"""By what part of the units an example may contradict its coefficients beyond what all examples do."""

_SWAPS = 120
"""Among how many candidates a better one is looked for in each column's place."""


@dataclass(frozen=True)
class Batch:
    """The examples of one gradient: `inputs (k, n)`, k the number of examples whose coefficients were found.

    `active (k, m)` says which units have a coefficient for the example. Shares of the live units, `(k,)` each, both
    0 for an example that the layer met at the parameters that were sent: `misfit`, where this activity contradicts
    every example in the span, and `contradicted`, where it contradicts the example that was found. `outside (k,)` is
    by how much an example leaves the range that examples have. `complete` says whether as many were found as the
    gradient has independent ones.
    """

    inputs: Tensor
    active: Tensor
    misfit: Tensor
    contradicted: Tensor
    outside: Tensor
    complete: bool

    @property
    def confidence(self) -> Tensor:
        """Return 1 for an example in the range whose activity is that of its coefficients, down to 0, `(k,)`.

        A wrong column makes other examples wrong, which both often show, but not always: a convex sum of examples
        lies in the range, too. So this is a ranking, no proof. For examples that the layer met at other parameters
        than those that were sent only what is contradicted beyond the misfit counts.
        """
        beyond = _beyond(self.contradicted, self.misfit)
        return torch.exp(-self.outside / _OUTSIDE - beyond / _BEYOND) * float(self.complete)

    @property
    def fits(self) -> bool:
        """Return whether all examples were found and lie in the range."""
        return self.complete and bool((self.outside < _OUTSIDE).all())

    def same(self, other: Self) -> bool:
        """Return whether as many examples switch on each unit in both."""
        return torch.equal(self.active.sum(dim=0), other.active.sum(dim=0))


def _beyond(contradicted: Tensor, misfit: Tensor) -> Tensor:
    """Return what is contradicted without need: examples that were met at other parameters contradict some units."""
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
    """Return the examples behind `gradient (m, n)` and `bias_gradient (m,)` of a layer that ReLU follows.

    `weight` and `bias` are what was sent; `most` is the number of examples at most, `low` and `high` their range, a
    number or one an input `(n,)`.
    `samples` random subsets of units are tried at most: with b examples one in about 2^(b-1) shows a column, and none
    is tried where 2^(b-1) is more than 1000 times `samples`. Columns that they leave open are looked for by way of
    examples in the range, see `in_range`, by `programs` linear programs for each number that may be missing. Ends
    when all examples are found and lie in the range. With more than 40 examples nothing is tried, and nothing is
    returned.
    """
    matrix = torch.cat([gradient, bias_gradient[:, None]], dim=1).double()
    spectrum = Spectrum.of(matrix, most)
    if spectrum is None or not 0 < spectrum.rank <= _MOST:
        return _nothing(gradient)
    sent = torch.cat([weight, bias[:, None]], dim=1).double()[spectrum.live]
    least, largest = (torch.as_tensor(one, dtype=torch.float64).expand(gradient.shape[1]) for one in (low, high))
    generator = generator_for(seed, "subsets of units")
    batch = max(1, min(_BATCH, _NUMBERS // max(spectrum.rank**2, len(spectrum.rows))))
    if 2 ** (spectrum.rank - 1) > _HOPELESS * samples:
        samples = 0
    pool, before = Pool.empty(spectrum), _nothing(gradient)
    for sweep in range(max(_SWEEPS if programs else 1, ceil(samples / batch))):
        if sweep * batch < samples:
            drawn = separated(spectrum, min(batch, samples - sweep * batch), generator)
            pool = pool.joined(Pool.of(spectrum, drawn, sent))
            if programs:
                before = _best(spectrum, pool, sent, least, largest)
        if programs and sweep < _SWEEPS:
            pool = _extended(spectrum, pool, sent, least, largest, programs, generator)
        best = _best(spectrum, pool, sent, least, largest)
        if best.fits and best.same(before):
            break
        before = best
    return best


def _extended(
    spectrum: Spectrum,
    pool: Pool,
    sent: Tensor,
    low: Tensor,
    high: Tensor,
    programs: int,
    generator: torch.Generator,
) -> Pool:
    """Return the pool with columns that are found by way of examples in the range.

    The likeliest columns are taken as known, and all others, in turn many and few, as missing: wrong ones are among
    the least likely.
    """
    missing = spectrum.rank
    while missing:
        places = _independent(pool.candidates.columns, spectrum.rank)
        if spectrum.rank - missing <= len(places):
            known = pool.candidates.columns[places[: spectrum.rank - missing]]
            found = by_examples(spectrum, known, sent, low, high, programs, generator)
            if len(found.columns):
                pool = pool.joined(Pool.of(spectrum, found, sent))
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


def _best(spectrum: Spectrum, pool: Pool, sent: Tensor, low: float | Tensor, high: float | Tensor) -> Batch:
    """Return the batch of the likeliest independent candidates."""
    found = pool.candidates
    places = _independent(found.columns, spectrum.rank)
    complete = len(places) == spectrum.rank
    if not complete:
        nothing = torch.zeros(len(places), spectrum.basis.shape[1] - 1, dtype=torch.float64)
        unknown = torch.ones(len(places), dtype=torch.float64)
        return Batch(nothing, _active(spectrum, found, places), pool.misfit[places], unknown, unknown, False)
    question = _Question(spectrum, found, pool.misfit, sent @ spectrum.basis.mT, low, high)
    places = _swapped(question, places)
    inputs, outside, contradicted = question.examples(torch.tensor([places]))
    active = _active(spectrum, found, places)
    return Batch(inputs[0], active, pool.misfit[places], contradicted[0], outside[0], True)


def _active(spectrum: Spectrum, found: Candidates, places: list[int]) -> Tensor:
    active = torch.zeros(len(places), len(spectrum.live), dtype=torch.bool)
    active[:, spectrum.live] = ~found.off[places]
    return active


@dataclass(frozen=True)
class _Question:
    """Which candidates are the columns: what is computed of a choice. `features (l, b)`: the layer on the basis."""

    spectrum: Spectrum
    found: Candidates
    misfit: Tensor
    features: Tensor
    low: float | Tensor
    high: float | Tensor

    def examples(self, choices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for choices of candidates `(t, b)` the examples `(t, b, n)`, scaled by the bias's input of 1.

        And by how much each leaves the range, root mean square, and for what part of the live units it has another
        activity than its coefficients, `(t, b)` each.
        """
        mixing = self.found.columns[choices].mT
        inverse, _ = torch.linalg.inv_ex(mixing)
        inverse = torch.nan_to_num(inverse, nan=0.0, posinf=0.0, neginf=0.0)
        scale = inverse @ self.spectrum.basis[:, -1:]
        coordinates = inverse / torch.where(scale == 0, 1e-30, scale)
        inputs = coordinates @ self.spectrum.basis[:, :-1]
        far = torch.relu(self.low - inputs) + torch.relu(inputs - self.high)
        outside = torch.nan_to_num(far.square().mean(dim=2).sqrt(), nan=1e6, posinf=1e6).clamp(max=1e6)
        active = coordinates @ self.features.mT > 0
        return inputs, outside, (active == self.found.off[choices]).double().mean(dim=2)

    def badness(self, choices: Tensor) -> Tensor:
        """Return how little the examples of each choice are like examples `(t,)`; infinity for dependent columns."""
        _, outside, contradicted = self.examples(choices)
        dependent = torch.linalg.svdvals(self.found.columns[choices])[:, -1] < self.spectrum.distinct
        beyond = _beyond(contradicted, self.misfit[choices])
        worst = (outside.clamp(max=1.0) + beyond).sum(dim=1)
        return torch.where(dependent, torch.inf, worst)


def _swapped(question: _Question, places: list[int]) -> list[int]:
    """Return the candidates after exchanging single ones as long as the examples fit better.

    Sums of columns can be as sparse as columns: in a network of one hidden layer the loss gradients of as many
    examples as classes are dependent, and so are their coefficients on units that all of them switch on. A wrong
    column makes wrong examples of the others: they leave the range, or have another activity than their coefficients.
    """
    worst = float(question.badness(torch.tensor([places])))
    improved = True
    while improved and worst > _OUTSIDE:
        improved = False
        for other in range(min(_SWAPS, len(question.found.columns))):
            if other in places:
                continue
            trials = torch.tensor([[*places[:place], other, *places[place + 1 :]] for place in range(len(places))])
            values = question.badness(trials)
            if float(values.min()) < worst - _OUTSIDE:
                places, worst = trials[int(values.argmin())].tolist(), float(values.min())
                improved = True
    return places


def _independent(columns: Tensor, count: int) -> list[int]:
    """Return the places of the first `count` independent rows of `columns (k, b)`, fewer where there are no more."""
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
