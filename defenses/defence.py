"""Where a defence stands and what it may do."""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Place = Literal["support", "query", "inner", "shared"]
"""The four places in a learner's computation where a defence can act (Rafiei et al. 2024, section 5):

`support` and `query` see `{"images": (n, C, H, W)}` before anything is computed from them; `inner` sees the gradient
of every inner step, `shared` the meta-gradient that is about to leave, both as named tensors.
"""


@runtime_checkable
class Defence(Protocol):
    """One thing a learner does to what it computes; also its configuration, a frozen pydantic model.

    Several defences compose: those of one place act in the order of the experiment file.
    """

    @property
    def place(self) -> Place:
        """Where the defence acts."""
        ...

    def __call__(self, tensors: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the defended tensors, same names, shapes and dtypes.

        All randomness comes from `generator`, which is keyed by (seed, round, learner, the defence's place in the
        list, inner step). An `inner` defence is differentiated through by second-order rules, so it must not work in
        place.
        """
        ...
