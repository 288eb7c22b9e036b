"""The space of the inputs that a linear layer took, as the gradient of its matrix shows it.

With inputs Z `(tokens, d)` and derivatives D `(tokens, units)` by the layer's outputs the gradient is `D^T Z`: its
rows are combinations of the inputs. With fewer tokens than d every input lies in a space that next to nothing else
lies in (Petrov et al. 2024, "DAGER", section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.span.spectrum import noise_floor

_ROUNDING = 1e-6
"""Part of an input's norm that computing it in float32 may change."""


class NothingShown(ValueError):
    """A gradient shows no space of inputs: it is 0, or its rank is full."""


@dataclass(frozen=True)
class InputSpace:
    """The space of a layer's inputs: `basis (r, d)`, orthonormal rows by the descending `values (r,)`; float64.

    `noise` is the largest singular value of what lies beneath.
    """

    basis: Tensor
    values: Tensor
    noise: float

    def distances(self, inputs: Tensor) -> Tensor:
        """Return how far `inputs (n, d)` lie from the space, `(n,)`: a part of their norms."""
        wide = inputs.double()
        outside: Tensor = (wide - wide @ self.basis.mT @ self.basis).norm(dim=-1) / wide.norm(dim=-1)
        return outside

    def tolerances(self, inputs: Tensor) -> Tensor:
        """Return how far inputs that are in the space can be found from it for the noise alone, `(n,)`.

        An input z of the space is `G^T a` of the gradient G without noise E; with it, z lies as far off as `E^T a`,
        whose norm is at most that of a times the noise. Rounding of the input itself adds to it.
        """
        wide = inputs.double()
        along = (wide @ self.basis.mT / self.values).norm(dim=-1)
        allowed: Tensor = self.noise * along / wide.norm(dim=-1) + _ROUNDING
        return allowed


def input_space(gradient: Tensor, known: Tensor | None = None) -> InputSpace:
    """Return the space of the inputs of which `gradient (units, d)` is made, above its noise.

    The noise is found from the singular values, see `noise_floor`. `known (k, d)` are inputs that are in the space
    whatever the gradient shows: softmax ignores what is added to all keys alike, so that the gradient of a key matrix
    has only the differences of the inputs.

    Raises `NothingShown` in one line for a gradient that is 0, and for one of full rank: nothing is left beneath by
    which inputs could be told from anything else. `noise_floor` finds one less than the full rank at most.
    """
    wide = gradient.double()
    if not bool(wide.any()):
        raise NothingShown("the matrix's gradient is 0, as that of LoRA's first factor is while the second is 0")
    _, values, rows = torch.linalg.svd(wide, full_matrices=False)
    floor = noise_floor(values, *wide.shape)
    # Rounding is not independent from entry to entry: what lies beneath is smaller than its bound.
    rank = max(1, floor.rank)
    full = min(wide.shape)
    if rank >= full - 1:
        raise NothingShown(
            f"the matrix's gradient {tuple(wide.shape)} has rank {rank}, and shows inputs only below {full - 1}"
        )
    noise = float(values[rank]) if rank < len(values) else 0.0
    basis, values = rows[:rank], values[:rank]
    if known is not None:
        added = known.double() / known.double().norm(dim=-1, keepdim=True) * values[0]
        _, values, basis = torch.linalg.svd(torch.cat([basis * values[:, None], added]), full_matrices=False)
        kept = int((values > max(noise, 1e-9 * float(values[0]))).sum())
        basis, values = basis[:kept], values[:kept]
    return InputSpace(basis, values, noise)
