"""The space spanned by a linear layer's inputs, determined from the gradient of its weight matrix.

With inputs Z `(tokens, d)` and derivatives D `(tokens, units)` with respect to the layer's outputs, the gradient is
`D^T Z`: its rows are linear combinations of the inputs. With fewer than d tokens, every input lies in this row space,
and hardly any other vector does (Petrov et al. 2024, "DAGER", section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metaleak.attacks.span.spectrum import noise_floor

_ROUNDING = 1e-6
"""Relative error of an input that is computed in float32."""


class NothingShown(ValueError):
    """A gradient does not determine an input space: it is 0, or its rank is full."""


@dataclass(frozen=True)
class InputSpace:
    """The space of a layer's inputs.

    `basis (r, d)` float64 has orthonormal rows, ordered by the descending singular values `values (r,)` float64.
    `noise` is the largest singular value attributed to noise.
    """

    basis: Tensor
    values: Tensor
    noise: float

    def distances(self, inputs: Tensor) -> Tensor:
        """Return the distances of `inputs (n, d)` from the space, relative to their norms, `(n,)` in [0, 1]."""
        wide = inputs.double()
        outside: Tensor = (wide - wide @ self.basis.mT @ self.basis).norm(dim=-1) / wide.norm(dim=-1)
        return outside

    def tolerances(self, inputs: Tensor) -> Tensor:
        """Return the largest distances that noise alone can cause for inputs that lie in the space, `(n,)`.

        Without noise, an input z in the space is `G^T a` for the gradient G. Noise E moves z off the space by at most
        the norm of `E^T a`, which is bounded by the norm of a times the noise. Rounding of the input itself is added.
        """
        wide = inputs.double()
        along = (wide @ self.basis.mT / self.values).norm(dim=-1)
        allowed: Tensor = self.noise * along / wide.norm(dim=-1) + _ROUNDING
        return allowed


def input_space(gradient: Tensor, known: Tensor | None = None) -> InputSpace:
    """Return the input space that `gradient (units, d)` determines above its noise.

    The noise is estimated from the singular values, see `noise_floor`. `known (k, d)` are inputs that belong to the
    space even if the gradient does not reveal them: the softmax is invariant to a vector added to all keys, so that
    the gradient of a key matrix contains only differences of the inputs.

    Raises `NothingShown` in one line for a gradient that is 0 or has full rank, in which case every vector lies in
    its row space. `noise_floor` returns at most the full rank minus one.
    """
    wide = gradient.double()
    if not bool(wide.any()):
        raise NothingShown("the matrix's gradient is 0, as that of LoRA's first factor is while the second is 0")
    _, values, rows = torch.linalg.svd(wide, full_matrices=False)
    floor = noise_floor(values, *wide.shape)
    # Rounding errors are not independent across entries: the noise is smaller than its bound.
    rank = max(1, floor.rank)
    full = min(wide.shape)
    if rank >= full - 1:
        raise NothingShown(
            f"the matrix's gradient {tuple(wide.shape)} has rank {rank}, and reveals inputs only below {full - 1}"
        )
    noise = float(values[rank]) if rank < len(values) else 0.0
    basis, values = rows[:rank], values[:rank]
    if known is not None:
        added = known.double() / known.double().norm(dim=-1, keepdim=True) * values[0]
        _, values, basis = torch.linalg.svd(torch.cat([basis * values[:, None], added]), full_matrices=False)
        kept = int((values > max(noise, 1e-9 * float(values[0]))).sum())
        basis, values = basis[:kept], values[:kept]
    return InputSpace(basis, values, noise)
