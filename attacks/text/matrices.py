"""The choice of the shared weight matrices that an attack on text uses."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from metaleak.attacks.observation import Observation
from metaleak.attacks.text.candidates import takes_single_tokens
from metaleak.clients.episode import Parameters
from metaleak.clients.models import Attention, TextModel

_ORDER = ("query", "q_lin", "q_proj", "value", "v_lin", "v_proj", "key", "k_lin", "k_proj")
"""Names of the projections of attention, the most informative first."""


@dataclass(frozen=True)
class Matrices:
    """The matrices that an attack uses.

    `first` and `second` are the names of a matrix of the first layer and of one of a later layer, and `attention` is
    the attention layer of `first`, if it belongs to one.
    """

    first: str
    second: str | None
    attention: Attention | None


def matrices_of(observation: Observation, chosen: str | None, second: bool) -> Matrices:
    """Return the shared matrices that an attack uses, with `chosen` as the first, by default the most informative.

    Raises `ValueError` in one line if no suitable matrix is shared, if `second` is true and none of a later layer is
    shared, and for gradients of another model.
    """
    shared = [name for name in checked_matrices(observation, chosen) if _of_attention(name)]
    model, parameters = observation.model, observation.parameters
    assert isinstance(model, TextModel)
    names = _by_use([chosen] if chosen is not None else shared)
    first = next((name for name in names if takes_single_tokens(model, parameters, name)), None)
    if first is None:
        raise ValueError("needs the gradient of a query, key or value matrix of the first layer, and none is shared")
    later = next((name for name in shared if not takes_single_tokens(model, parameters, name)), None)
    if second and later is None:
        raise ValueError("uses: two matrices needs a matrix of a later layer, and none is shared")
    return Matrices(first, later if second else None, model.attention_of(first))


def matrix_of_a_layer(observation: Observation, chosen: str | None) -> str:
    """Return the shared matrix that is `chosen`, by default the first, of a layer with one input vector per token.

    Raises `ValueError` in one line if there is none, and for gradients of another model.
    """
    matrices = checked_matrices(observation, chosen)
    names = [chosen] if chosen is not None else matrices
    model, parameters = observation.model, observation.parameters
    assert isinstance(model, TextModel)
    # The input of an embedding is a token, that of a classifier one vector per sentence.
    found = next((name for name in names if _takes_vectors(model, parameters, name)), None)
    if found is None:
        raise ValueError(
            f"matrix: needs a layer with one input vector per token, got {', '.join(names[:6]) or 'none'}"
        )
    return found


def checked_matrices(observation: Observation, chosen: str | None) -> list[str]:
    """Return the names of the shared matrices.

    Raises `ValueError` in one line for gradients that are not finite or belong to another model, and for a `chosen`
    parameter that is not shared or not a matrix.
    """
    parameters = observation.parameters
    for name, value in observation.gradients.items():
        if name not in parameters or value.shape[1:] != parameters[name].shape:
            raise ValueError(f"{name} {tuple(value.shape[1:])} is not the gradient of a parameter of the model")
        if not bool(value.isfinite().all()):
            raise ValueError(f"the gradient of {name} has values that are not finite")
    if chosen is not None and chosen not in observation.gradients:
        raise ValueError(f"matrix: {chosen} is not shared; choose from {', '.join(list(observation.gradients)[:6])}")
    if chosen is not None and parameters[chosen].ndim != 2:
        raise ValueError(f"matrix: {chosen} {tuple(parameters[chosen].shape)} is not a matrix")
    return [name for name in observation.gradients if parameters[name].ndim == 2]


def _takes_vectors(model: TextModel, parameters: Parameters, name: str) -> bool:
    # The input of an adapter's second factor is the output of the first, not the layer's input.
    if name.endswith(".lora_b"):
        return False
    first, second = [token for token in range(3) if token != model.padding][:2]
    return model.inputs_of(name, parameters, torch.tensor([[first, second]])).ndim == 3


def _of_attention(name: str) -> bool:
    # The input of an adapter's second factor is the output of the first, not the layer's input.
    return not name.endswith(".lora_b") and any(part in name.split(".") for part in (*_ORDER, "c_attn"))


def _by_use(names: Iterable[str]) -> list[str]:
    def place(name: str) -> int:
        return next((number for number, part in enumerate(_ORDER) if part in name.split(".")), len(_ORDER))

    return sorted(names, key=place)
