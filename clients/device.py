"""The device on which a node computes."""

from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda"]


def torch_device(device: Device) -> torch.device:
    """Return the device of this process; `auto` is a GPU when torch sees one.

    Raises `ValueError` when `cuda` is asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device: torch sees no GPU here, use auto or cpu")
    return torch.device("cuda")
