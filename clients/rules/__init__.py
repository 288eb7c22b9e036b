"""Meta-learning rules: how an episode becomes a meta-gradient, and many episodes many at once, as pure functions."""

from metaleak.clients.rules.batch import batch_meta_gradients, stacked
from metaleak.clients.rules.maml import MAML, anil, first_order_maml
from metaleak.clients.rules.own_span import own_coordinates, own_span_pays
from metaleak.clients.rules.reptile import Reptile
from metaleak.clients.rules.rule import Perturb, Rule, cross_entropy, inner_steps

__all__ = [
    "MAML",
    "Perturb",
    "Reptile",
    "Rule",
    "anil",
    "batch_meta_gradients",
    "cross_entropy",
    "first_order_maml",
    "inner_steps",
    "own_coordinates",
    "own_span_pays",
    "stacked",
]
