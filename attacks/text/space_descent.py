"""One sentence from the gradient of any matrix of any layer, by gradient descent toward the layer's input space.

The input of a later layer depends on the whole sentence, so that tokens cannot be tested one by one. The distance of
a sentence's inputs from the space is, however, a differentiable function of its word embeddings (the objective of
"TIGER", arXiv 2606.18312). The attack alternates descent over embeddings and replacements of single tokens.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.text.input_space import InputSpace, NothingShown, input_space
from metaleak.attacks.text.matrices import matrix_of_a_layer
from metaleak.attacks.text.span_attack import sentences_of
from metaleak.attacks.text.text_attack import TextAttack
from metaleak.clients.models import TextModel

_ROUNDING = 1e-6
"""Mean squared distance of a true sentence that rounding in float32 can cause."""

_BATCH = 64
_ELSEWHERE, _TURNS = 2, 2


class TextDescent(TextAttack):
    """Reconstructs one sentence whose inputs to a layer lie in the row space of the gradient of the layer's matrix.

    `matrix` is the shared parameter that is used, by default the first matrix of a layer with one input vector per
    token. The number of tokens is estimated as the rank of its gradient. This is correct unless inputs repeat, and
    fails in the last layer, where only the first token contributes. In each of `rounds`, Adam takes `steps` with
    initial learning rate `rate` over the embeddings of the tokens that are not yet settled, and these are decoded to
    the nearest tokens. Then every position takes the best of its `nearest` tokens and of those found at other
    positions.
    """

    rounds: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 0.02
    nearest: Annotated[int, Field(ge=1)] = 16

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the sentence of every learner, `(L, 1, T)` int64, and its confidence, `(L, 1)` in [0, 1].

        A learner whose gradient determines no input space, see `input_space`, gets an empty sentence of confidence 0.
        Raises `ValueError` in one line if this holds for all learners, for a gradient over several sentences, and if
        no suitable matrix is shared.
        """
        if sentences_of(observation) != 1:
            raise ValueError(f"reconstructs one sentence, and the gradient is over {sentences_of(observation)}")
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        weight = matrix_of_a_layer(observation, self.matrix)
        learners = len(observation.gradients[weight])
        (length,) = observation.input_shape
        made = torch.full((learners, 1, length), model.padding)
        confidence = torch.zeros(learners, 1, dtype=torch.float64)
        nothing: list[NothingShown] = []
        for row in range(learners):
            try:
                space = input_space(model.over_inputs(weight, observation.gradients[weight][row]))
            except NothingShown as error:
                nothing.append(error)
                continue
            search = _Search(model, parameters, weight, space, min(len(space.basis), length))
            tokens, distance = search.best(self, generator_for(seed, row, "text descent"))
            made[row, 0, : len(tokens)] = tokens
            confidence[row, 0] = 1 / (1 + distance / _ROUNDING)
            if progress is not None:
                progress(row + 1, learners)
        if len(nothing) == learners:
            raise nothing[0]
        return Reconstructions(made, confidence)


class _Search:
    """The search for one sentence of `length` tokens."""

    def __init__(
        self, model: TextModel, parameters: dict[str, Tensor], weight: str, space: InputSpace, length: int
    ) -> None:
        self._model, self._parameters, self._weight = model, parameters, weight
        self._basis = space.basis.float()
        self._table = model.every_parameter(parameters)[model.embedding_table].detach()
        self._unit = F.normalize(self._table, dim=-1)
        self._length = length
        self._known = {0: model.begin, length - 1: model.end}

    def best(self, settings: TextDescent, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return the best sentence found, `(length,)`, and its mean squared distance."""
        settled = torch.zeros(self._length, dtype=torch.bool)
        tokens = torch.randint(self._model.vocabulary_size, (self._length,), generator=generator)
        for place, token in self._known.items():
            if token is not None:
                tokens[place], settled[place] = token, True
        known = settled.clone()
        best, least, pool = tokens, float("inf"), tokens[:0]
        for _ in range(settings.rounds):
            embeddings = self._descended(tokens, settled, settings, generator)
            likeness = F.normalize(embeddings, dim=-1) @ self._unit.mT
            likeness[:, self._model.padding] = -2
            tokens = torch.where(settled, tokens, likeness.argmax(dim=-1))
            nearest = likeness.topk(min(settings.nearest, likeness.shape[-1]), dim=-1).indices
            # Descent finds the correct words before their correct positions.
            pool = torch.unique(torch.cat([pool, tokens, nearest[~known, :_ELSEWHERE].flatten()]))
            for _ in range(_TURNS):
                tokens = self._exchanged(tokens, nearest, pool, known)
            each = self._distances(tokens[None])[0]
            if float(each.mean()) < least:
                best, least = tokens, float(each.mean())
            if least < _ROUNDING:
                break
            # Tokens whose inputs already lie near the space are kept; the others are searched again.
            settled = known | (each < each.median())
        return best, least

    def _distances(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Return the squared distances of the inputs, relative to their squared norms, `(B, length)`."""
        inputs = self._model.inputs_of(self._weight, self._parameters, tokens, embeddings)
        outside = inputs - inputs @ self._basis.mT @ self._basis
        return outside.square().sum(-1) / inputs.square().sum(-1)

    def _descended(
        self, tokens: Tensor, settled: Tensor, settings: TextDescent, generator: torch.Generator
    ) -> Tensor:
        """Return embeddings `(length, d)` after Adam, those of settled tokens unchanged."""
        base = self._table[tokens]
        spread = float(self._table.std())
        free = base + spread * torch.randn(base.shape, generator=generator)
        free.requires_grad_()
        optimizer = torch.optim.Adam([free], lr=settings.rate)
        for step in range(settings.steps):
            embeddings = torch.where(settled[:, None], base, free)
            loss = self._distances(tokens[None], embeddings[None]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * (1 - step / settings.steps)
            optimizer.step()
        return torch.where(settled[:, None], base, free).detach()

    def _downhill(self, tokens: Tensor, place: int, count: int) -> Tensor:
        """Return the tokens at `place` that lower the distance most to first order (Ebrahimi et al. 2018)."""
        embeddings = self._table[tokens].requires_grad_()
        loss = self._distances(tokens[None], embeddings[None]).mean()
        (slope,) = torch.autograd.grad(loss, embeddings)
        return (self._table @ slope[place]).topk(count, largest=False).indices

    def _exchanged(self, tokens: Tensor, nearest: Tensor, pool: Tensor, known: Tensor) -> Tensor:
        """Return the tokens after one pass in which every position takes the best of several alternatives.

        These are its `nearest (length, n)` tokens, the `pool`, the tokens of steepest descent, and swaps with others.
        """
        for place in (~known).nonzero().flatten().tolist():
            others = torch.unique(torch.cat([nearest[place], pool, self._downhill(tokens, place, nearest.shape[1])]))
            tried = tokens.repeat(len(others) + 1, 1)
            tried[1:, place] = others
            tried = torch.cat([tried, _swapped(tokens, place, (~known).nonzero().flatten())])
            with torch.no_grad():
                values = torch.cat([self._distances(some).mean(dim=1) for some in torch.split(tried, _BATCH)])
            tokens = tried[int(values.argmin())]
        return tokens


def _swapped(tokens: Tensor, place: int, others: Tensor) -> Tensor:
    """Return one row of `tokens` for each of `others`, with the tokens at `place` and at that position swapped."""
    rows = tokens.repeat(len(others), 1)
    rows[:, place] = tokens[others]
    rows[torch.arange(len(others)), others] = tokens[place]
    return rows
