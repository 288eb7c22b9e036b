"""Any `torch.nn.Module` as a model."""

import re

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaleak.clients.episode import Parameters
from metaleak.clients.models.model import HEAD

_LOOKS_LIKE_HEAD = re.compile(r"(body\.)*head\.")


class TorchModule:
    """A `torch.nn.Module` that takes images and returns logits, as a pure function of its parameters.

    The parameters of the module's last layer that has any are named `head.*`, so that ANIL finds the classifier;
    other parameters that the module itself calls `head.*` are named `body.head.*`.
    A native batch norm must not track running statistics. Third derivatives through native batch, layer and instance
    norm are wrong, see `metaleak.clients.models.normalisation`: what learners send is right, but an attack that asks
    about support images through second-order MAML is misled.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        layers = [name for name, layer in module.named_modules() if list(layer.parameters(recurse=False))]
        if not layers:
            raise ValueError("the module has no parameters to learn")
        self._head = layers[-1] + "." if layers[-1] else ""

    def _public(self, name: str) -> str:
        if name.startswith(self._head):
            return HEAD + name.removeprefix(self._head)
        # One "body." more than the module wrote, so that no two parameters get the same name.
        return f"body.{name}" if _LOOKS_LIKE_HEAD.match(name) else name

    def initialise(self, image_shape: tuple[int, int, int], ways: int, generator: torch.Generator) -> Parameters:
        """Return the module's parameters, redrawn by each layer's own `reset_parameters`, seeded by `generator`.

        Raises `ValueError` when the module does not return `(B, ways)` logits for images of this shape.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for layer in self.module.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
            parameters = {
                self._public(name): value.detach().clone() for name, value in self.module.named_parameters()
            }
            logits = self(parameters, torch.zeros(2, *image_shape))
        if logits.shape != (2, ways):
            raise ValueError(
                f"the module returns shape {tuple(logits.shape)} for 2 images, {ways} ways need (2, {ways})"
            )
        return parameters

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`."""
        named = {name: parameters[self._public(name)] for name, _ in self.module.named_parameters()}
        logits: Tensor = functional_call(self.module, named, (images,))
        return logits
