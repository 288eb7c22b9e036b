"""Meta-learning rules: how an episode becomes a meta-gradient, and many episodes many at once, as pure functions."""

from metaleak.clients.rules.batch import batch_meta_gradients, stacked
from metaleak.clients.rules.federated import FedAvg, FedSGD
from metaleak.clients.rules.maml import MAML, anil, first_order_maml
from metaleak.clients.rules.own_span import own_coordinates, own_span_pays
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
)

__all__ = [
    "MAML",
    "FedAvg",
    "FedSGD",
    "Perturb",
    "Reptile",
    "Rule",
    "SupportEntry",
    "adapted_names",
    "anil",
    "batch_meta_gradients",
    "cross_entropy",
    "first_order_maml",
    "inner_steps",
    "outer_point",
    "own_coordinates",
    "own_span_pays",
    "stacked",
    "support_entry",
]
