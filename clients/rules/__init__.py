"""Meta-learning rules: pure functions that compute the meta-gradients of one or many episodes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaleak.clients.rules.batch import batch_in_parts, batch_meta_gradients, meta_gradient, stacked
    from metaleak.clients.rules.federated import FedAvg, FedSGD
    from metaleak.clients.rules.fedmenf import FedMeNF
    from metaleak.clients.rules.maml import MAML, anil, first_order_maml
    from metaleak.clients.rules.own_span import own_coordinates, own_span_pays
    from metaleak.clients.rules.released_means import ReadsMeans, ReleasedMeans, reads_means
    from metaleak.clients.rules.reptile import Reptile
    from metaleak.clients.rules.rule import (
        Perturb,
        Rule,
        SupportEntry,
        adapted_names,
        cross_entropy,
        inner_steps,
        outer_point,
        support_entry,
        taken_back,
    )

__all__ = [
    "MAML",
    "FedAvg",
    "FedMeNF",
    "FedSGD",
    "Perturb",
    "ReadsMeans",
    "ReleasedMeans",
    "Reptile",
    "Rule",
    "SupportEntry",
    "adapted_names",
    "anil",
    "batch_in_parts",
    "batch_meta_gradients",
    "cross_entropy",
    "first_order_maml",
    "inner_steps",
    "meta_gradient",
    "outer_point",
    "own_coordinates",
    "own_span_pays",
    "reads_means",
    "stacked",
    "support_entry",
    "taken_back",
]

_MODULES = {
    "MAML": "maml",
    "FedAvg": "federated",
    "FedMeNF": "fedmenf",
    "FedSGD": "federated",
    "Perturb": "rule",
    "ReadsMeans": "released_means",
    "ReleasedMeans": "released_means",
    "Reptile": "reptile",
    "Rule": "rule",
    "SupportEntry": "rule",
    "adapted_names": "rule",
    "anil": "maml",
    "batch_in_parts": "batch",
    "batch_meta_gradients": "batch",
    "cross_entropy": "rule",
    "first_order_maml": "maml",
    "inner_steps": "rule",
    "meta_gradient": "batch",
    "outer_point": "rule",
    "own_coordinates": "own_span",
    "own_span_pays": "own_span",
    "reads_means": "released_means",
    "stacked": "batch",
    "support_entry": "rule",
    "taken_back": "rule",
}

if not TYPE_CHECKING:  # Type checkers would take any name for one of these.

    def __getattr__(name: str) -> object:
        """Import the module of a name when the name is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
