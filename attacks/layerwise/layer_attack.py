"""R-GAP and the hybrid method as an attack on learners that each send the gradient of a single example."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions
from metaleak.attacks.layerwise.chain import Chain, chain_of
from metaleak.attacks.layerwise.hybrid import reconstruct_hybrid
from metaleak.attacks.layerwise.rgap import reconstruct
from metaleak.attacks.layerwise.security import deficit_of
from metaleak.attacks.observation import Observation
from metaleak.attacks.threat_model import Capability
from metaleak.clients.episode import Parameters

_SINGLE = 0.01
"""The largest ratio of second to first singular value for a dense layer's gradient to be that of one example."""

_UNDETERMINED = 0.5
"""The factor on the confidence if a layer has fewer constraints than unknowns."""


class LayerByLayer(BaseModel):
    """Reconstruction of the one example behind a learner's gradient, from the last layer to the first.

    For apps whose clients send the cross-entropy gradient of a single example, or one step along it; the gradient of
    several examples cannot be inverted this way. Whether it is of a single example shows in the gradients of the
    dense layers, which then have rank one. `method` is R-GAP (Zhu and Blaschko 2021), or the hybrid method after Chen
    and Campbell (2021), which differs from it only where a layer lacks constraints. Networks must be chains of
    convolutions and dense layers with supported activations, see `chain_of`.

    The confidence is 1 minus the largest relative residual of a layer's constraints, and half of that if a layer has
    fewer constraints than unknowns, so that many inputs satisfy them. With two classes, a single dense layer after
    convolutions has a gradient of rank one for any batch: then only the residual reveals a batch. A learner whose
    gradient is not that of one example gets a medium gray image with confidence 0; if that holds for all learners,
    the attack is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    method: Literal["r-gap", "hybrid"] = "hybrid"

    @property
    def requires(self) -> frozenset[Capability]:
        """No capability beyond the messages that the server sees."""
        return frozenset()

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return one example for every learner, `(L, 1, C, H, W)`.

        Raises `ValueError`, in one line that names the layer, for a network that is not a chain or cannot be
        inverted, and if no learner's gradient is that of a single example.
        """
        parameters = {name: value.double() for name, value in observation.parameters.items()}
        chain = chain_of(observation.model, parameters, observation.input_shape)
        determined = not any(deficit_of(stage.operator) for stage in chain.stages)
        learners = len(next(iter(observation.gradients.values())))
        made = torch.full((learners, 1, *observation.input_shape), 0.5)
        confidence = torch.zeros(learners, 1)
        refused: list[ValueError] = []
        for row in range(learners):
            gradients = {name: value[row].double() for name, value in observation.gradients.items()}
            try:
                example, missed = self._inverted(chain, gradients)
                made[row, 0] = example
                confidence[row] = max(0.0, 1 - missed) * (1.0 if determined else _UNDETERMINED)
            except ValueError as error:
                refused.append(error)
            if progress is not None:
                progress(row + 1, learners)
        if len(refused) == learners:
            raise refused[0]
        return Reconstructions(made, confidence)

    def _inverted(self, chain: Chain, gradients: Parameters) -> tuple[Tensor, float]:
        """Return the example, and the largest relative residual of a layer's constraints."""
        if not _of_one_example(chain, gradients):
            raise ValueError("layer-by-layer: no learner's gradient is that of a single example")
        invert = reconstruct if self.method == "r-gap" else reconstruct_hybrid
        found = invert(chain, gradients, "cross_entropy")
        if not bool(found.example.isfinite().all()):
            raise ValueError("layer-by-layer: the gradients are too large or too small to be inverted")
        return found.example.float(), found.residual


def _of_one_example(chain: Chain, gradients: Parameters) -> bool:
    """Return whether all gradients are finite, and those of dense layers have rank one."""
    if not all(bool(value.isfinite().all()) for value in gradients.values()):
        return False
    for stage in chain.stages:
        if stage.operator.sliding is None:
            sizes = torch.linalg.svdvals(gradients[stage.weight_name])
            first, others = sizes[0], sizes[1:]
            if not 0 < float(first) < torch.inf or bool((others > _SINGLE * first).any()):
                return False
    return True
