"""The contributions of single examples to a mean: their norms and their weighted sum."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vmap

from metaleak.clients.episode import Parameters
from metaleak.clients.models import Model, Passed, dense_input_of, passed

_BYTES_AT_ONCE = 1 << 23
"""The maximum number of bytes of per-example contributions held at a time: 8 MB.

Of 1 to 64 MB, FedSGD takes the least time with this number for Conv4 of 64 filters and for an MLP of 256 units, and
next to the least for Conv4 of 32.
"""

NO_INPUTS: Mapping[str, Tensor] = MappingProxyType({})
"""No layer whose inputs are replaced."""


class Contributions(Protocol):
    """The contributions of n examples to a mean over them."""

    @property
    def norms(self) -> Tensor:
        """The L2 norm of each contribution over all parameters, `(n,)` in float64; it may be infinite or NaN."""
        ...

    def added_up(self, weights: Tensor) -> Parameters:
        """Return the sum weighted by `weights (n,)`; a contribution of weight 0 adds nothing, even if it is NaN."""
        ...


@dataclass(frozen=True)
class OuterProducts:
    """Contributions to dense layers: outer products, or derivatives of outer products, that are never formed.

    The gradient of one example's loss with respect to a layer's weight is d x^T, where d is the gradient with respect
    to the layer's outputs and x are the layer's inputs. Its norm is |d| |x|, and the weighted sum over examples is
    one matrix product (Goodfellow 2015; Li et al. 2022, "Large Language Models Can Be Strong Differentially Private
    Learners", section 4). A Hessian-vector product is the derivative of d x^T along the direction, d' x^T + d x'^T.
    """

    layers: tuple[Passed, ...]
    names: frozenset[str]
    logits: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls,
        model: Model,
        layers: Mapping[str, str | None],
        parameters: Parameters,
        names: frozenset[str],
        inputs: Tensor,
        labels: Tensor,
        direction: Parameters | None = None,
        product_inputs: Mapping[str, Tensor] = NO_INPUTS,
    ) -> "OuterProducts":
        """Return the gradients of the cross-entropy in `names`, or its Hessians times `direction` if it is given.

        `product_inputs` has, by the name of a layer's weight, what replaces the layer's inputs in the products.
        """

        seen: list[Tensor] = []

        def slopes_of(logits: Tensor) -> Tensor:
            seen.append(logits.detach())
            return _cross_entropy_slopes(logits, labels)

        layers_passed = tuple(
            replace(layer, inputs=product_inputs[layer.weight]) if layer.weight in product_inputs else layer
            for layer in passed(model, layers, parameters, names, inputs, slopes_of, direction)
        )
        return cls(layers_passed, names, seen[0], labels)

    @property
    def loss(self) -> Tensor:
        """The mean cross-entropy of the examples, a scalar, which is not part of the contributions."""
        return F.cross_entropy(self.logits, self.labels)

    @property
    def norms(self) -> Tensor:
        """Return the norm of each example's contribution."""
        return torch.stack([_squares_of(layer, self.names) for layer in self.layers]).sum(0).sqrt()

    def added_up(self, weights: Tensor) -> Parameters:
        """Return the weighted sum over the examples."""
        total: Parameters = {}
        counted = weights[:, None] > 0
        kept = None if bool(counted.all()) else counted
        for layer in self.layers:
            inputs, slopes, moved, inputs_moved = (
                None if one is None else _numbers(one, kept)
                for one in (layer.inputs, layer.slopes, layer.slopes_moved, layer.inputs_moved)
            )
            assert inputs is not None
            assert slopes is not None
            scale = weights.to(slopes.dtype)[:, None]
            outer = (slopes if moved is None else moved) * scale
            if layer.weight in self.names:
                if inputs_moved is None:
                    total[layer.weight] = outer.mT @ inputs
                else:
                    # In float64, because the two products may nearly cancel and must still match the computed norm.
                    once, twice = outer.double().mT @ inputs.double(), (slopes * scale).double().mT
                    total[layer.weight] = (once + twice @ inputs_moved.double()).to(slopes.dtype)
            if layer.bias is not None and layer.bias in self.names:
                total[layer.bias] = outer.sum(0)
        return total


def _cross_entropy_slopes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each example's cross-entropy in its `logits (n, ways)`, a dual number if they are."""
    value, moved = forward_ad.unpack_dual(logits)  # type: ignore[no-untyped-call]
    likely = value.softmax(1)
    if labels.is_floating_point():
        targets, mass = labels, labels.sum(1, keepdim=True)
    else:
        targets, mass = torch.eye(likely.shape[1], dtype=likely.dtype, device=likely.device)[labels], None
    scaled = likely if mass is None else likely * mass
    slopes: Tensor = scaled - targets
    if moved is None:
        return slopes
    turned = scaled * (moved - (likely * moved).sum(1, keepdim=True))
    made: Tensor = forward_ad.make_dual(slopes, turned)  # type: ignore[no-untyped-call]
    return made


def _squares(rows: Tensor) -> Tensor:
    """Return the squared L2 norm of each row, in float64."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()


def _squares_of(layer: Passed, names: frozenset[str]) -> Tensor:
    """Return the squared norm of each example's contribution to a layer's weight and bias, as far as in `names`."""
    slopes = _squares(layer.slopes if layer.slopes_moved is None else layer.slopes_moved)
    if layer.weight not in names:
        return slopes
    found = slopes * _squares(layer.inputs)
    if layer.slopes_moved is not None and layer.inputs_moved is not None:
        # |d' x^T + d x'^T|^2 has a mixed term.
        wide, before = layer.inputs_moved.double(), layer.slopes.double()
        crossed = (layer.slopes_moved.double() * before).sum(1) * (layer.inputs.double() * wide).sum(1)
        # Rounding may make a sum that should be 0 negative.
        found = (found + _squares(before) * _squares(wide) + 2 * crossed).clamp(min=0.0)
    return found + slopes if layer.bias in names else found


def _numbers(rows: Tensor, kept: Tensor | None) -> Tensor:
    """Return `rows`, with zeros for those that are not `kept (n, 1)`, since 0 times NaN is NaN."""
    return rows if kept is None else torch.where(kept, rows, 0.0)


@dataclass(frozen=True)
class Whole:
    """Contributions stored explicitly: `made` has a leading axis for the examples, as have their `losses (n,)`."""

    made: Parameters
    losses: Tensor
    examples: "_Examples"

    @classmethod
    def each(
        cls,
        model: Model,
        parameters: Parameters,
        images: Tensor,
        labels: Tensor,
        direction: Parameters,
        contribution: Callable[[Parameters, Parameters, Tensor, Tensor], tuple[Parameters, Tensor]],
        product_inputs: Mapping[str, Tensor] = NO_INPUTS,
    ) -> Iterator["Whole"]:
        """Yield, in parts that fit into memory, the value of `contribution` for each image separately, and its loss.

        It is called with `parameters`, `direction` (may be empty), one image and its label. If the model's first
        layer is dense (`dense_input_of`), the contribution of one image x to that layer's weight is d x^T for some d,
        and d |x| is computed instead: its norm is the same, and the sum over examples is one matrix product.
        `product_inputs` may have, by the name of this weight, what replaces the images `(n, ...)` in these products.
        """
        for examples in _chunks(model, parameters, images, labels, product_inputs):

            def one(
                column: Tensor, direction_column: Tensor, image: Tensor, label: Tensor, some: _Examples = examples
            ) -> tuple[Parameters, Tensor]:
                moved = {**direction, **some.named(direction_column)} if direction else direction
                return contribution({**parameters, **some.named(column)}, moved, image, label)

            columns = examples.columns(parameters)
            direction_columns = examples.columns(direction) if direction else columns
            made, losses = vmap(one)(columns, direction_columns, examples.inputs, examples.labels)
            yield cls({name: value.detach() for name, value in made.items()}, losses.detach(), examples)

    @property
    def norms(self) -> Tensor:
        """Return the norm of each example's contribution."""
        return torch.stack([_squares(value.flatten(1)) for value in self.made.values()]).sum(0).sqrt()

    def added_up(self, weights: Tensor) -> Parameters:
        """Return the weighted sum over the examples."""
        total: Parameters = {}
        finite = bool((weights > 0).all())
        for name, value in self.made.items():
            # 0 times NaN is NaN.
            numbers = value if finite else value.nan_to_num(0.0, 0.0, 0.0)
            scale = weights.to(value.dtype)
            if name == self.examples.weight and self.examples.directions is not None:
                total[name] = (numbers[..., 0] * scale[:, None]).mT @ self.examples.directions
            else:
                total[name] = torch.tensordot(scale, numbers, dims=1)
        return total


@dataclass(frozen=True)
class _Examples:
    """Some examples as used in the computation; for a dense first layer, in coordinates along their own images."""

    inputs: Tensor
    labels: Tensor
    weight: str | None = None
    directions: Tensor | None = None
    scaled: Tensor | None = None

    def columns(self, parameters: Parameters) -> Tensor:
        """Return the first weight times each image's direction, `(n, h)`; `(n, 0)` if the layer is not dense."""
        if self.weight is None or self.scaled is None:
            return self.inputs.new_zeros(len(self.inputs), 0, dtype=torch.float32)
        return self.scaled @ parameters[self.weight].mT

    def named(self, column: Tensor) -> Parameters:
        """Return the dense first layer's weight for one example, `(h, 1)`, by name; empty if it is not dense."""
        return {} if self.weight is None else {self.weight: column[:, None]}


def _chunks(
    model: Model, parameters: Parameters, images: Tensor, labels: Tensor, product_inputs: Mapping[str, Tensor]
) -> Iterator[_Examples]:
    """Yield the examples in parts whose contributions fit into `_BYTES_AT_ONCE`."""
    dense = dense_input_of(model)
    size = {name: value.numel() * value.element_size() for name, value in parameters.items()}
    if dense is not None:
        flat = dense.inputs(images)
        replaced = product_inputs.get(dense.weight, flat)
        lengths = replaced.norm(dim=1, keepdim=True)
        # An image of zeros or NaN has no direction, and contributes nothing to this layer.
        directions, scaled = ((one / lengths.clamp(min=1e-30)).nan_to_num(0.0, 0.0, 0.0) for one in (replaced, flat))
        size[dense.weight] //= flat.shape[1]
    chunk = max(1, _BYTES_AT_ONCE // sum(size.values()))
    for start in range(0, len(images), chunk):
        some = slice(start, start + chunk)
        if dense is None:
            yield _Examples(images[some], labels[some])
        else:
            yield _Examples(lengths[some], labels[some], dense.weight, directions[some], scaled[some])
