"""Which of the matrices that are shared an attack on text can use."""

from collections.abc import Iterable
from dataclasses import dataclass

from metaleak.attacks.observation import Observation
from metaleak.attacks.text.candidates import takes_single_tokens
from metaleak.clients.models import Attention, LanguageModel

_ORDER = ("query", "q_lin", "q_proj", "value", "v_lin", "v_proj", "key", "k_lin", "k_proj")
"""What layers of attention are called, in the order in which their matrices tell most."""


@dataclass(frozen=True)
class Matrices:
    """The names of a matrix of the first layer, whose `attention` it may belong to, and of one of a later layer."""

    first: str
    second: str | None
    attention: Attention | None


def matrices_of(observation: Observation, chosen: str | None, second: bool) -> Matrices:
    """Return the matrices of what is shared that an attack uses; `chosen` is the first of them, else the best is.

    Raises `ValueError` in one line where there is none, or no `second` one, and for gradients of another model.
    """
    model, parameters = observation.model, observation.parameters
    assert isinstance(model, LanguageModel)
    for name, value in observation.gradients.items():
        if name not in parameters or value.shape[1:] != parameters[name].shape:
            raise ValueError(f"{name} {tuple(value.shape[1:])} is not the gradient of a parameter of the model")
    shared = [name for name in observation.gradients if parameters[name].ndim == 2 and _of_attention(name)]
    if chosen is not None and chosen not in observation.gradients:
        raise ValueError(f"matrix: {chosen} is not shared; there are {', '.join(list(observation.gradients)[:6])}")
    names = _by_use([chosen] if chosen is not None else shared)
    first = next((name for name in names if takes_single_tokens(model, parameters, name)), None)
    if first is None:
        raise ValueError("needs the gradient of a query, key or value matrix of the first layer, and none is shared")
    later = next((name for name in shared if not takes_single_tokens(model, parameters, name)), None)
    if second and later is None:
        raise ValueError("uses: two matrices needs that of a second layer, and none is shared")
    return Matrices(first, later if second else None, model.attention_of(first))


def _of_attention(name: str) -> bool:
    # The second factor of an adapter takes what the first makes of the layer's inputs.
    return not name.endswith(".lora_b") and any(part in name.split(".") for part in (*_ORDER, "c_attn"))


def _by_use(names: Iterable[str]) -> list[str]:
    def place(name: str) -> int:
        return next((number for number, part in enumerate(_ORDER) if part in name.split(".")), len(_ORDER))

    return sorted(names, key=place)
