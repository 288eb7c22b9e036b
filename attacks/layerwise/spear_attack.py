"""SPEAR as an attack on gradients and meta-gradients of models whose first layer is dense and followed by ReLU."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions
from metaleak.attacks.layerwise.batches.recovery import Batch, recover
from metaleak.attacks.layerwise.explanation import explain
from metaleak.attacks.observation import Observation
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import (
    Affine,
    DenseInput,
    ElementwiseFirst,
    Model,
    bias_of,
    blank_inputs,
    dense_input_of,
    layers_of,
)
from metaleak.clients.rules import support_entry

_UNCONFIRMED = 0.4
"""The largest confidence of an example that is not confirmed."""

_SUPPORT = 0.1
"""The largest share of units at which a support example may contradict its coefficients; others have far more."""


class Spear(BaseModel):
    """Exact reconstruction of the inputs of a dense first layer that is followed by ReLU.

    From a plain gradient (FedSGD) it recovers the batch, from a second-order meta-gradient support and query examples
    together, and with first-order rules only the query set, since support examples do not enter the gradient. All
    recovered examples are returned, those of the attacked set first as far as the sets can be distinguished (support
    examples fit the parameters that the server sent, query examples the adapted ones); those of the other set have
    half the confidence.

    At most `samples` random subsets of units are tried per learner; the number needed doubles with every example.
    Examples that they do not yield are searched for within the range of pixels, for up to 40 examples per learner, by
    `programs` linear programs for each possible number of missing examples (see `batches.recovery`). Pixels are
    assumed to be in [0, 1], or to exceed it by at most `beyond`, as with noise on images; noise that entered the
    gradient is recovered with the image.

    A confidence of 1 means that the example is confirmed: with labels and sets that the attack infers, all examples
    together reproduce the meta-gradient that was sent, and this one contributes to it (see `explanation`). Confirmed
    examples of the other set have 0.5. A confidence up to 0.4 is only a ranking, as a combination of images may be
    returned in place of an image. Under first-order rules nothing can be confirmed, since the support set, which
    determines the adapted parameters, is unknown. An example that is not found is medium gray with confidence 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    samples: Annotated[int, Field(ge=1, le=10**9)] = 400_000
    programs: Annotated[int, Field(ge=0, le=10_000)] = 12
    beyond: Annotated[float, Field(ge=0, le=100)] = 0.0

    @property
    def requires(self) -> frozenset[Capability]:
        """No capability beyond the messages that the server sees."""
        return frozenset()

    def applies_to(self, model: Model) -> bool:
        """Return whether the model's first layer is dense and, as far as the model states it, followed by ReLU."""
        if dense_input_of(model) is None:
            return False
        below = torch.tensor([-1.0])
        return not isinstance(model, ElementwiseFirst) or float(model.first_activation(below)) == 0.0

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the recovered examples of every learner, those of the attacked set first.

        Raises `ValueError` for a model whose first layer is not dense or not followed by ReLU, for gradients without
        that layer's weight or bias, and for a rule under which the attacked set does not enter the gradient.
        """
        first = _first_layer(observation)
        entry = support_entry(observation.rule)
        if self.asks == "support" and entry == "parameters":
            raise ValueError(
                "spear: with a first-order rule the support set affects the gradient only through the adapted "
                "parameters: none of its examples can be recovered, attack the query set"
            )
        support, query = observation.ways * observation.shots, observation.ways * observation.queries
        most = query if entry == "parameters" else support + query
        gradient, bias_gradient = (observation.gradients[name] for name in (first.weight, bias_of(first.weight)))
        sent = observation.parameters[first.weight], observation.parameters[bias_of(first.weight)]
        scale = first.affine or Affine(torch.ones(gradient.shape[2]), torch.zeros(gradient.shape[2]))
        low, high = (scale.offset.double() + place * scale.gain.double() for place in (-self.beyond, 1 + self.beyond))
        made, confidence = [], []
        for learner in range(len(gradient)):
            batch = recover(
                gradient[learner],
                bias_gradient[learner],
                *sent,
                most,
                low=torch.minimum(low, high),
                high=torch.maximum(low, high),
                samples=self.samples,
                programs=self.programs,
                seed=seed,
            )
            examples, surely = self._arranged(
                observation, learner, batch, *_filled(batch, most, scale, self.beyond), seed
            )
            made.append(examples.reshape(most, *observation.input_shape))
            confidence.append(surely)
            if progress is not None:
                progress(learner + 1, len(gradient))
        return Reconstructions(torch.stack(made).float(), torch.stack(confidence).float())

    def _arranged(
        self, observation: Observation, row: int, batch: Batch, examples: Tensor, confidence: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the examples and their confidence, those of the attacked set first."""
        support, query = observation.ways * observation.shots, observation.ways * observation.queries
        if len(batch.inputs) == support + query:
            shaped = examples.reshape(-1, *observation.input_shape).float()
            found = explain(observation, row, shaped, seed)
            if found.holds:
                order = torch.arange(support + query)
                asked = support
                if self.asks == "query":
                    order, asked = order.roll(query), query
                places = found.places[order]
                sure = torch.where(found.confirmed[order], 1.0, _UNCONFIRMED * confidence[places])
                return examples[places], _halved(observation, sure, asked)
        confidence = _UNCONFIRMED * confidence
        if support_entry(observation.rule) != "curvature":
            return examples, confidence
        found_order, asked = _order(batch, support, self.asks)
        rest = [*found_order, *range(len(found_order), len(examples))]
        return examples[rest], _halved(observation, confidence[rest], asked)


def _halved(observation: Observation, confidence: Tensor, asked: int) -> Tensor:
    """Return the confidence, halved after the first `asked` examples if both sets enter the gradient."""
    if support_entry(observation.rule) == "curvature":
        confidence[asked:] /= 2
    return confidence


def _first_layer(observation: Observation) -> DenseInput:
    first = dense_input_of(observation.model)
    if first is None:
        raise ValueError("spear: the model's first layer is not dense")
    bias = bias_of(first.weight)
    for name in (first.weight, bias):
        if name not in observation.gradients:
            raise ValueError(f"spear: the gradients must include {name}, which learners do not share")
    blank = blank_inputs(2, observation.input_shape)
    layer = layers_of(observation.model, observation.parameters, blank).layers[0]
    if layer.activation != "relu":
        found = layer.activation or "no activation"
        raise ValueError(f"spear: layer {layer.name} is followed by {found}, not by relu")
    return first


def _order(batch: Batch, support: int, asks: str) -> tuple[list[int], int]:
    """Return the order of the examples, those of the attacked set first, and the number of these.

    Support examples are those that fit the parameters that were sent best.
    """
    order = torch.argsort(batch.contradicted + batch.misfit, stable=True).tolist()
    own = [place for place in order[:support] if float(batch.contradicted[place]) < _SUPPORT]
    others = [place for place in order if place not in own]
    return ([*own, *others], len(own)) if asks == "support" else ([*others, *own], len(others))


def _filled(batch: Batch, count: int, scale: Affine, beyond: float) -> tuple[Tensor, Tensor]:
    """Return `count` examples, `(count, n)`, with their confidence `(count,)`; gray where none was found."""
    examples = torch.full((count, batch.inputs.shape[1]), 0.5, dtype=torch.float64)
    confidence = torch.zeros(count, dtype=torch.float64)
    if batch.complete:
        gain = torch.where(scale.gain == 0, torch.inf, scale.gain)
        found = (batch.inputs - scale.offset) / gain
        examples[: len(found)] = torch.nan_to_num(found, nan=0.5).clamp(-beyond, 1 + beyond)
        confidence[: len(found)] = batch.confidence
    return examples, confidence
