"""Derivatives by `torch.func` without torch's compiler, which they import at their first use.

The import takes more than a second and 160 MB in every process. All that a derivative wants of the compiler is that
compiled autograd is off meanwhile, and where the compiler is not imported it is.
"""

import sys
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch

_COMPILER = "torch._dynamo"


class _Later:
    """Stands for a module that is imported when something else than `known` is asked of it."""

    def __init__(self, module: str, known: dict[str, Any]) -> None:
        self._module, self._known = module, known

    def __getattr__(self, name: str) -> Any:
        if name in self._known and _COMPILER not in sys.modules:
            return self._known[name]
        return getattr(import_module(self._module), name)


def leave_compiler_out() -> None:
    """Keep `torch.func` from importing torch's compiler; whoever asks for the compiler still gets it."""
    if _COMPILER not in sys.modules and not isinstance(vars(torch).get("_dynamo"), _Later):
        autograd = _Later(f"{_COMPILER}.compiled_autograd", {"_disable": nullcontext})
        # An import of the compiler puts the module itself in this place.
        torch._dynamo = _Later(_COMPILER, {"compiled_autograd": autograd})  # type: ignore[assignment]
