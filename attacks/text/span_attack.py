"""The exact attack on text: sentences from the gradient of one matrix of the first layer, optionally of others."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.text.candidates import Candidates, near_candidates, sees_later_tokens, single_inputs
from metaleak.attacks.text.head_consistency import HeadConsistency
from metaleak.attacks.text.input_space import InputSpace, NothingShown, input_space
from metaleak.attacks.text.layer_consistency import LayerConsistency
from metaleak.attacks.text.layer_search import LayerSearch
from metaleak.attacks.text.matrices import Matrices, matrices_of
from metaleak.attacks.text.prefixes import extended_prefixes
from metaleak.attacks.text.sentences import FITS, Sentence, improved, single_sentence, told_apart
from metaleak.attacks.text.text_attack import TextAttack
from metaleak.clients.models import TextModel
from metaleak.clients.rules import support_entry

_POWERS = (0.7, 0.9, 0.5, 0.3)
_EVALUATIONS = 1_500_000
"""Budget of arrangements times the squared rank, if each arrangement requires new derivatives."""

_ALLOWED = {"one matrix": 1.0, "two matrices": 4.0, "embeddings": 1.0}
"""Largest ratio of distance to tolerance for a candidate; it may exceed 1 if a later layer verifies candidates."""

_STRONG = 1e-8
"""Derivatives below this fraction of the largest count as 0."""


class TextSpan(TextAttack):
    """Reconstructs sentences from the row space of the gradient of a matrix of the first layer.

    Every token is tested at every position: those whose inputs lie in the space occurred there (Petrov et al. 2024,
    "DAGER"; the noise is estimated, no threshold is set). `uses` chooses how tokens are assigned to sentences:

    - `one matrix`, a query, key or value matrix of the first layer: for a query matrix, by the keys of its heads, see
      `HeadConsistency`. The space of a key matrix is completed by the start token. A single sentence is certain; with
      several, some tokens may remain that this matrix cannot assign, and their sentences have a low confidence.
    - `two matrices`: also by the inputs of a later layer, which depend on whole sentences.
    - `embeddings`: also by the rows of the word embedding's gradient, which are 0 for absent tokens.

    `matrix` is the name of the first layer's matrix, by default the most informative of those shared.
    """

    uses: Literal["one matrix", "two matrices", "embeddings"] = "one matrix"

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the sentences of every learner's support and query set, `(L, n, T)` int64, and their confidence.

        The confidence is `(L, n)` in [0, 1]. If the server observed only a mean, every learner gets the sentences of
        all learners in it. A learner whose gradient determines no input space, see `input_space`, gets empty
        sentences of confidence 0. Raises `ValueError` in one line if this holds for all learners, and if no suitable
        matrix is shared.
        """
        matrices = matrices_of(observation, self.matrix, second=self.uses == "two matrices")
        assert isinstance(observation.model, TextModel)
        learners = len(next(iter(observation.gradients.values())))
        different = learners if observation.mean_of == 1 else 1
        count, (length,) = sentences_of(observation), observation.input_shape
        made = torch.full((different, count, length), observation.model.padding)
        confidence = torch.zeros(different, count, dtype=torch.float64)
        nothing: list[NothingShown] = []
        for row in range(different):
            gradients = {name: value[row] for name, value in observation.gradients.items()}
            generator = generator_for(seed, row, "text span")
            try:
                made[row], confidence[row] = self._sentences(observation, matrices, gradients, generator)
            except NothingShown as error:
                nothing.append(error)
            if progress is not None:
                progress(row + 1, different)
        if len(nothing) == different:
            raise nothing[0]
        return Reconstructions(made.expand(learners, -1, -1), confidence.expand(learners, -1))

    def _sentences(
        self, observation: Observation, matrices: Matrices, gradients: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the sentences of one learner, `(n, T)`, and the confidence of each, `(n,)` in [0, 1]."""
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        (length,) = observation.input_shape
        count = sentences_of(observation)
        space, found = self._candidates(model, parameters, matrices.first, gradients, length)
        if count == 1:
            sentences = [single_sentence(found, model.end)]
            inside = torch.bincount(found.places[found.ratios <= 1], minlength=length)[: len(sentences[0])]
            confidence = [float((inside > 0).all() / inside.clamp(min=1).prod())] if len(inside) else [0.0]
        else:
            found = found.at(found.inside(_ALLOWED[self.uses]))
            if not len(found.tokens):
                raise NothingShown("no token lies in the space of the matrix's gradient")
            sentences, costs = self._told_apart(observation, matrices, gradients, space, found, count, generator)
            confidence = [1 / (1 + cost / FITS) for cost in costs]
        made = torch.full((count, length), model.padding)
        for row, sentence in enumerate(sentences):
            made[row, : len(sentence)] = found.tokens[list(sentence)]
        return made, torch.tensor(confidence + [0.0] * (count - len(confidence)), dtype=torch.float64)

    def _candidates(
        self,
        model: TextModel,
        parameters: dict[str, Tensor],
        weight: str,
        gradients: dict[str, Tensor],
        length: int,
    ) -> tuple[InputSpace, Candidates]:
        space, found = candidates_of(model, parameters, weight, gradients[weight], length)
        if self.uses == "embeddings":
            table = gradients.get(model.embedding_table)
            if table is None:
                raise ValueError(
                    f"uses: embeddings needs the gradient of {model.embedding_table}, which is not shared"
                )
            found = found.at((table.abs().amax(dim=1) > 0)[found.tokens])
        return space, found

    def _told_apart(
        self,
        observation: Observation,
        matrices: Matrices,
        gradients: dict[str, Tensor],
        space: InputSpace,
        found: Candidates,
        count: int,
        generator: torch.Generator,
    ) -> tuple[list[Sentence], list[float]]:
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        heads, gradient = matrices.attention, model.over_inputs(matrices.first, gradients[matrices.first])
        untold = 0.0 if matrices.second else 1.0

        def by_heads(some: Candidates) -> HeadConsistency:
            if heads is None or heads.query != matrices.first:
                return HeadConsistency(some, space, gradient, None, 1, untold)
            # The key matrix may be a constant of the model, and may have no bias.
            every = model.every_parameter(parameters)
            bias = every.get(heads.key.removesuffix("weight") + "bias")
            keys = some.inputs @ every[heads.key].double().mT
            keys = keys if bias is None else keys + bias.double()
            return HeadConsistency(some, space, gradient, keys, heads.heads, untold)

        if matrices.second is None:
            return arranged(found, count, model.end, by_heads, generator)
        later = input_space(model.over_inputs(matrices.second, gradients[matrices.second]))
        # The last layer of a BERT reveals only the first token of each sentence, which does not help.
        if len(later.basis) <= max(count, int(found.places.max())):
            untold, kept = 1.0, found.inside()
            sentences, costs = arranged(found.at(kept), count, model.end, by_heads, generator)
            return [tuple(kept[list(sentence)].tolist()) for sentence in sentences], costs
        consistency = LayerConsistency(found, model, parameters, matrices.second, later)
        if not sees_later_tokens(model, parameters, matrices.second):
            return extended_prefixes(found, consistency, model.end, count)
        whole = by_heads(found)
        by_keys = [] if whole.dependent else told_apart(found, count, model.end, whole, generator)[0]
        costs = consistency(by_keys)
        if len(set(by_keys)) == count and sum(costs) < FITS * count:
            return by_keys, costs
        search = LayerSearch(found, consistency, whole.strengths, model.end, generator)
        return search.sentences(count, by_keys)


def arranged(
    found: Candidates,
    count: int,
    end: int | None,
    costs_of: Callable[[Candidates], HeadConsistency],
    generator: torch.Generator,
) -> tuple[list[Sentence], list[float]]:
    """Return the `count` sentences of candidates that are most consistent with the gradient, and the cost of each.

    If the candidates' inputs are linearly dependent, as with more candidates than the space has dimensions, subsets
    are tried of which the gradient is a sparse combination, for several measures of sparsity.
    """
    whole = costs_of(found)
    if not whole.dependent:
        return told_apart(found, count, end, whole, generator)
    allowed = max(100, _EVALUATIONS // whole.rank**2)
    best: tuple[list[Sentence], list[float]] = ([], [])
    for power in _POWERS:
        strengths = whole.strengths(power=power)
        kept = (strengths > _STRONG * strengths.max()).nonzero().flatten()
        part = found.at(kept)
        sentences, costs = told_apart(part, count, end, costs_of(part), generator, 3, allowed)
        if not sentences:
            continue
        sentences = [tuple(kept[list(sentence)].tolist()) for sentence in sentences]
        sentences, costs = improved(sentences, found, end, whole, allowed)
        if not best[0] or sum(costs) < sum(best[1]):
            best = sentences, costs
        if sum(costs) < FITS * count:
            break
    return best if best[0] else told_apart(found, count, end, whole, generator, evaluations=allowed)


def sentences_of(observation: Observation) -> int:
    """Return the number of sentences behind a gradient: of one learner, or of all learners in a mean.

    They are those of both sets, or those of the query set if the support set enters only through the adapted
    parameters.
    """
    both = support_entry(observation.rule) != "parameters"
    return observation.mean_of * observation.ways * (observation.queries + (observation.shots if both else 0))


def space_of(
    model: TextModel, parameters: dict[str, Tensor], weight: str, gradient: Tensor, length: int
) -> InputSpace:
    """Return the input space of the layer of `weight`.

    The input of the start token completes it if the gradient does not reveal this input, as for a key matrix.
    """
    rows = model.over_inputs(weight, gradient)
    space = input_space(rows)
    if model.begin is None:
        return space
    begin, first = torch.tensor([model.begin]), torch.tensor([0])
    known = single_inputs(model, parameters, weight, begin, first, length)
    inside = float(space.distances(known)) <= float(space.tolerances(known))
    return space if inside else input_space(rows, known)


def candidates_of(
    model: TextModel, parameters: dict[str, Tensor], weight: str, gradient: Tensor, length: int
) -> tuple[InputSpace, Candidates]:
    """Return the input space of the layer of `weight`, and the pairs of token and position near it.

    If the model has a start token, it is the only candidate at the first position, and occurs at no other.
    """
    space = space_of(model, parameters, weight, gradient, length)
    near = near_candidates(model, parameters, weight, space, length)
    if model.begin is not None:
        near = near.at(((near.tokens == model.begin) == (near.places == 0)).nonzero().flatten())
    return space, near
