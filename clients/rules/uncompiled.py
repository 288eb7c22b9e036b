"""Using `torch.func` without importing torch's compiler.

The first derivative normally imports the compiler, which takes more than a second and 160 MB in every process. It
needs the compiler only to disable compiled autograd, which is never enabled while the compiler is not imported.
"""

import sys
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch

_COMPILER = "torch._dynamo"


class _Later:
    """A placeholder for a module, which is imported when an attribute other than those in `known` is accessed."""

    def __init__(self, module: str, known: dict[str, Any]) -> None:
        self._module, self._known = module, known

    def __getattr__(self, name: str) -> Any:
        if name in self._known and _COMPILER not in sys.modules:
            return self._known[name]
        return getattr(import_module(self._module), name)


def leave_compiler_out() -> None:
    """Keep `torch.func` from importing torch's compiler; explicit use of the compiler still imports it."""
    if _COMPILER not in sys.modules and not isinstance(vars(torch).get("_dynamo"), _Later):
        autograd = _Later(f"{_COMPILER}.compiled_autograd", {"_disable": nullcontext})
        # Importing the compiler replaces this placeholder with the module itself.
        torch._dynamo = _Later(_COMPILER, {"compiled_autograd": autograd})  # type: ignore[assignment]
