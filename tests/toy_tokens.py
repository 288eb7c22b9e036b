"""Token sequences, a model of them and an attack that rebuilds them, as a user of metaleak writes them."""

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from metaleak.attacks.attack import Reconstructions
from metaleak.clients.datasets import LabeledExamples

VOCABULARY, LENGTH, WIDTH = 50, 6, 4


class Sequences(BaseModel):
    """Sequences of six tokens: 40 of each of four classes, drawn at random."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def load(self) -> LabeledExamples:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCABULARY, (160, LENGTH), generator=generator)
        return LabeledExamples(tokens, torch.arange(160) % 4, ("a", "b", "c", "d"), modality="tokens")


class Embeddings(BaseModel):
    """An embedding table a place, and a linear classifier of what it finds there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def initialize(self, input_shape, ways, generator):
        (length,) = input_shape
        return {
            "embedding": torch.randn(length, VOCABULARY, WIDTH, generator=generator),
            "head.weight": torch.randn(ways, length * WIDTH, generator=generator) / 5,
            "head.bias": torch.zeros(ways),
        }

    def __call__(self, parameters, tokens):
        found = parameters["embedding"][torch.arange(tokens.shape[1]), tokens]
        return F.linear(found.flatten(1), parameters["head.weight"], parameters["head.bias"])


class Rows(BaseModel):
    """Reads the query set of a 2-way 1-query task off the embedding's gradient.

    Rows that are not zero are those of tokens that occur; the sign along the difference of the classifier's rows says
    in the example of which class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    asks: str = "query"

    @property
    def requires(self):
        return frozenset()

    def reconstruct(self, observation, seed, progress=None):
        gradient = observation.gradients["embedding"]
        weight = observation.parameters["head.weight"].reshape(2, LENGTH, WIDTH)
        along = (gradient * (weight[1] - weight[0])[:, None]).sum(-1)
        tokens = torch.stack([along.argmax(dim=-1), along.argmin(dim=-1)], dim=1)
        return Reconstructions(tokens, along.abs().amax(dim=(1, 2))[:, None].expand(-1, 2))
