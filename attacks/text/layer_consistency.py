"""What the gradient of a later layer's matrix tells of sentences: their inputs to that layer lie in its space."""

import torch
from torch import Tensor

from metaleak.attacks.text.candidates import Candidates
from metaleak.attacks.text.input_space import InputSpace
from metaleak.attacks.text.sentences import Sentence
from metaleak.clients.models import TextModel


class LayerConsistency:
    """How far the inputs of sentences to the layer of `weight` lie from the space of what that layer took.

    A mean over tokens of squared distances, as parts of the squared norms. Learners computed in float32, which leaves
    1e-6 of it.
    """

    def __init__(
        self,
        candidates: Candidates,
        model: TextModel,
        parameters: dict[str, Tensor],
        weight: str,
        space: InputSpace,
    ) -> None:
        self._tokens = candidates.tokens
        self._model, self._parameters = model, parameters
        self._weight, self._space = weight, space
        self._kept: dict[Sentence, float] = {}

    def __call__(self, sentences: list[Sentence]) -> list[float]:
        """Return the distance of each sentence."""
        for sentence in set(sentences) - set(self._kept):
            tokens = self._tokens[list(sentence)][None]
            with torch.no_grad():
                inputs = self._model.inputs_of(self._weight, self._parameters, tokens)[0]
            self._kept[sentence] = float(self._space.distances(inputs).square().mean())
        return [self._kept[sentence] for sentence in sentences]
