"""Any `torch.nn.Module` as a model."""

import copy
import inspect
import logging
from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from metaleak.clients.episode import Parameters
from metaleak.clients.models.dense_input import dense_input_of_module, without_images
from metaleak.clients.models.dense_layers import dense_layers_of_module
from metaleak.clients.models.model import DenseInput, blank_inputs

_LOG = logging.getLogger("metaleak")


class TorchModule:
    """A `torch.nn.Module` that takes images, or tokens, and returns logits, as a pure function of its parameters.

    A copy of the module is used, in evaluation mode: dropout is off. Batch and instance norm use the statistics of
    the current batch, never running ones. Parameters that do not require a gradient stay as they are and are not
    learned; buffers are constants.

    Parameters have the module's own names. The classifier, for head-only rules, is the last layer that has parameters
    to learn. Whether the first layer is dense is found out by computing, see `dense_input`.

    Third derivatives through native batch, layer and instance norm are wrong, see
    `metaleak.clients.models.normalization`. The meta-gradients of learners are right all the same, but an attack
    that asks about support images through second-order MAML gets wrong gradients.

    Raises `ValueError` when the module has nothing to learn or cannot be copied.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
        # Running statistics are left out of the copy; those of a lazy layer cannot be copied.
        left_out = {id(buffer): None for layer in norms for buffer in layer.buffers(recurse=False)}
        try:
            self.module = copy.deepcopy(module, left_out).eval()
        except Exception as error:
            raise ValueError(
                "the module cannot be copied: does it hold computed tensors as attributes, as the older "
                "torch.nn.utils.weight_norm does (torch.nn.utils.parametrizations has another)?"
            ) from error
        for layer in self.module.modules():
            if isinstance(layer, _NormBase):
                layer.track_running_stats = False
        # A call turns lazy layers into plain ones, whose sizes may be wrong for the next initialization.
        self._called = copy.deepcopy(self.module) if _is_lazy(self.module) else self.module
        layers = [
            name
            for name, layer in module.named_modules()
            if any(value.requires_grad for value in layer.parameters(recurse=False))
        ]
        if not layers:
            raise ValueError("the module has no parameters to learn")
        last = layers[-1] + "." if layers[-1] else ""
        learned = [name for name, value in self.module.named_parameters() if value.requires_grad]
        self._head = tuple(name for name in learned if name.startswith(last))

    def __repr__(self) -> str:
        return f"TorchModule({self.module!r})"

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the last layer's parameters that are learned."""
        return self._head

    @property
    def dense_input(self) -> DenseInput | None:
        """The first layer, if images go into it only, flattened and perhaps scaled and shifted; else `None`.

        It is `None` for a module with lazy layers, which have no size before the first initialization.
        """
        return None if self._found is None else self._found[0]

    @property
    def dense_layers(self) -> Mapping[str, str | None] | None:
        """The dense layers of the module, if it is a plain chain of dense layers and activations; else `None`."""
        return self._dense_layers

    @cached_property
    def _dense_layers(self) -> Mapping[str, str | None] | None:
        if self._found is None:
            return None
        learned = {name: value.detach() for name, value in self.module.named_parameters() if value.requires_grad}
        with torch.random.fork_rng(devices=[]):
            return dense_layers_of_module(self._computed, learned, self._found[1])

    @cached_property
    def _found(self) -> tuple[DenseInput, tuple[int, int, int]] | None:
        if _is_lazy(self.module):
            return None
        learned = {name: value.detach() for name, value in self.module.named_parameters() if value.requires_grad}
        with torch.random.fork_rng(devices=[]):
            return dense_input_of_module(self._computed, learned)

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return the module's parameters, redrawn by each layer's own `reset_parameters`, seeded by `generator`.

        Lazy layers take their sizes from the inputs. Raises `ValueError` when the module does not return
        `(B, ways)` logits for inputs of this shape, or has parameters that are not float32.
        """
        if any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in self.module.modules()):
            _say_once("the model's dropout is off: a meta-gradient is a function of its parameters and images")
        inputs = blank_inputs(2, input_shape)
        started = copy.deepcopy(self.module)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if _is_lazy(started):
                _first_call(started, inputs)
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for layer in started.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
        learned = {name: value for name, value in started.named_parameters() if value.requires_grad}
        for name, value in learned.items():
            if value.dtype != torch.float32:
                raise ValueError(f"the module's parameter {name} is {value.dtype}, it must be torch.float32")
        logits = _first_call(started, inputs)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the module returns a {type(logits).__name__}, not a tensor of logits (examples, {ways})"
            )
        if logits.shape != (2, ways):
            raise ValueError(
                f"the module returns shape {tuple(logits.shape)} for 2 examples, {ways} ways need (2, {ways})"
            )
        if not logits.requires_grad:
            raise ValueError("the module's logits do not depend on its parameters (are they detached?)")
        return {name: value.detach().clone() for name, value in learned.items()}

    def __call__(self, parameters: Parameters, images: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `images (B, C, H, W)`, or for inputs `(B, n)` of the dense first layer."""
        if images.ndim == 2 and self._found is not None:
            return without_images(self._computed, parameters, images, self._found[0].weight, self._found[1])
        return self._computed(parameters, images)

    def _computed(self, parameters: Parameters, images: Tensor) -> Tensor:
        def constant(value: Tensor) -> Tensor:
            # Computed in float64 throughout if the images are float64.
            widened = images.dtype == torch.float64 and value.is_floating_point()
            return value.to(images.device, torch.float64 if widened else value.dtype)

        buffers = {name: constant(value) for name, value in self._called.named_buffers()}
        named = {
            name: parameters[name] if value.requires_grad else constant(value)
            for name, value in self._called.named_parameters()
        }
        # Fused attention has no second derivatives.
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = functional_call(self._called, buffers | named, (images,))
        return logits


def _is_lazy(module: nn.Module) -> bool:
    return any(isinstance(layer, LazyModuleMixin) for layer in module.modules())


@lru_cache
def _say_once(message: str) -> None:
    """Log `message`, once in this process."""
    _LOG.warning(message)


def _first_call(module: nn.Module, inputs: Tensor) -> object:
    """Return the output of `module` for `inputs (B, ...)`; raises `ValueError` when it cannot take them."""
    try:
        inspect.signature(module.forward).bind(inputs)
    except TypeError as error:
        raise ValueError(f"the module's forward must take a batch of examples and nothing else: {error}") from None
    try:
        return module(inputs)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"the module cannot take examples of shape {tuple(inputs.shape[1:])}: {reason}; "
            "the data have this shape: choose data or a model that fit each other"
        ) from error
