"""SPEAR as an attack on what learners send, where the first layer is dense and ReLU follows it."""

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
"""The confidence of an example that looks right in every respect and is not confirmed."""

_SUPPORT = 0.1
"""By what part of the units a support example may contradict its coefficients; the others are far above."""


class Spear(BaseModel):
    """Exact reconstruction of the examples that entered a dense first layer followed by ReLU.

    From a plain gradient (FedSGD) it recovers the batch, from second-order meta-gradients support and query examples
    together; with first-order rules the query set alone, for the support set does not enter. All that were recovered
    are returned, those of the asked set first as far as they can be told: support examples fit the parameters that
    were sent, query examples the adapted ones, and those of the other set have half the confidence.

    `samples` random subsets of units are tried for a learner at most; the number that is needed doubles with every
    example. What they leave open is looked for by way of examples in their range, of up to 40 examples a learner, by
    `programs` linear programs for each number that may be missing (see `batches.recovery`). Examples are expected in
    [0, 1], or to leave it by `beyond` at most, as noise on them makes them do: what is recovered is what entered the
    gradient, noise included.

    A confidence of 1 says that the example is confirmed: all together have, with labels and sets that are found, the
    meta-gradient that was sent, and this one contributes to it (see `explanation`); 0.5 says the same of an example
    of the other set. Confidence up to 0.4 is a ranking: a sum of images can be returned for an image, and lie in its
    range. First-order rules leave nothing to confirm it by, as the support set that adapted the parameters is
    unknown. An example that is not found is medium gray, with confidence 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    samples: Annotated[int, Field(ge=1, le=10**9)] = 400_000
    programs: Annotated[int, Field(ge=0, le=10_000)] = 12
    beyond: Annotated[float, Field(ge=0, le=100)] = 0.0

    @property
    def requires(self) -> frozenset[Capability]:
        """Nothing beside what the server sees."""
        return frozenset()

    def applies_to(self, model: Model) -> bool:
        """Return whether the model's first layer is dense, with ReLU after it as far as the model states it."""
        if dense_input_of(model) is None:
            return False
        below = torch.tensor([-1.0])
        return not isinstance(model, ElementwiseFirst) or float(model.first_activation(below)) == 0.0

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the examples of the asked set of every learner.

        Raises `ValueError` for a model whose first layer has no bias or is not followed by ReLU, for gradients that
        leave it out, and for a rule by which the asked set does not enter.
        """
        first = _first_layer(observation)
        entry = support_entry(observation.rule)
        if self.asks == "support" and entry == "parameters":
            raise ValueError(
                "spear: with a first-order rule the support set enters what is sent by the adapted parameters alone: "
                "none of its examples can be recovered"
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
        """Return the examples and the confidence with the asked set's first."""
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
    """Return the confidence with half of it for all behind those `asked`, where the sets enter by different ways."""
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
            raise ValueError(f"spear: what was sent does not include {name}")
    blank = blank_inputs(2, observation.input_shape)
    layer = layers_of(observation.model, observation.parameters, blank).layers[0]
    if layer.activation != "relu":
        found = layer.activation or "no activation"
        raise ValueError(f"spear: layer {layer.name} is followed by {found}, not by relu")
    return first


def _order(batch: Batch, support: int, asks: str) -> tuple[list[int], int]:
    """Return the places of the examples, the asked set's first, and how many of these there are.

    The support set's fit the sent parameters best.
    """
    order = torch.argsort(batch.contradicted + batch.misfit, stable=True).tolist()
    own = [place for place in order[:support] if float(batch.contradicted[place]) < _SUPPORT]
    others = [place for place in order if place not in own]
    return ([*own, *others], len(own)) if asks == "support" else ([*others, *own], len(others))


def _filled(batch: Batch, count: int, scale: Affine, beyond: float) -> tuple[Tensor, Tensor]:
    """Return the examples in their range `(count, n)` with their confidence `(count,)`, gray where there are none."""
    examples = torch.full((count, batch.inputs.shape[1]), 0.5, dtype=torch.float64)
    confidence = torch.zeros(count, dtype=torch.float64)
    if batch.complete:
        gain = torch.where(scale.gain == 0, torch.inf, scale.gain)
        found = (batch.inputs - scale.offset) / gain
        examples[: len(found)] = torch.nan_to_num(found, nan=0.5).clamp(-beyond, 1 + beyond)
        confidence[: len(found)] = batch.confidence
    return examples, confidence
