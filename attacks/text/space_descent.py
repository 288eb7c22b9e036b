"""One sentence from the gradient of any matrix of any layer, by descent to the space of the layer's inputs.

What a later layer takes of a token depends on the whole sentence, so that tokens cannot be tried one by one. But the
distance of a sentence's inputs from the space is a function of its word embeddings with a derivative (the objective
of "TIGER", arXiv 2606.18312). Descent over embeddings and exchanges of single tokens take turns.
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
"""A mean squared distance that float32 leaves of a true sentence."""

_BATCH = 64
_ELSEWHERE, _TURNS = 2, 2


class TextDescent(TextAttack):
    """One sentence whose inputs to a layer lie in the space that the gradient of the layer's matrix shows.

    `matrix` is the shared parameter that is used, by default the first matrix
    of a layer that takes all tokens. The number of tokens is the rank of
    its gradient; this is right but for repeated inputs, and not in the last layer, which reads the first token alone.
    In each of `rounds`, Adam takes `steps` of `rate` over the embeddings of the tokens that are not settled, nearest
    tokens are taken, and the best is chosen of the `nearest` ones at every place and of those that came up elsewhere.
    """

    rounds: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 0.02
    nearest: Annotated[int, Field(ge=1)] = 16

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the sentence of every learner, `(L, 1, T)` int64, and how sure it is, in [0, 1].

        A learner whose gradient shows nothing, see `input_space`, gets an empty sentence of confidence 0. Raises
        `ValueError` in one line where that is so for all, for learners with several sentences, and where no matrix
        is shared that the attack can use.
        """
        if sentences_of(observation) != 1:
            raise ValueError(f"rebuilds one sentence, and {sentences_of(observation)} enter what is seen")
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        weight = matrix_of_a_layer(observation, self.matrix)
        learners = len(observation.gradients[weight])
        (length,) = observation.input_shape
        made = torch.full((learners, 1, length), model.padding)
        sure = torch.zeros(learners, 1, dtype=torch.float64)
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
            sure[row, 0] = 1 / (1 + distance / _ROUNDING)
            if progress is not None:
                progress(row + 1, learners)
        if len(nothing) == learners:
            raise nothing[0]
        return Reconstructions(made, sure)


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
        """Return the best sentence that is found `(length,)`, and its mean squared distance."""
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
            # Descent finds words sooner than their places.
            pool = torch.unique(torch.cat([pool, tokens, nearest[~known, :_ELSEWHERE].flatten()]))
            for _ in range(_TURNS):
                tokens = self._exchanged(tokens, nearest, pool, known)
            each = self._distances(tokens[None])[0]
            if float(each.mean()) < least:
                best, least = tokens, float(each.mean())
            if least < _ROUNDING:
                break
            # What lies near the space already is kept; what does not is looked for again.
            settled = known | (each < each.median())
        return best, least

    def _distances(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Return the squared distances `(B, length)` of the inputs, as parts of their squared norms."""
        inputs = self._model.inputs_of(self._weight, self._parameters, tokens, embeddings)
        outside = inputs - inputs @ self._basis.mT @ self._basis
        return outside.square().sum(-1) / inputs.square().sum(-1)

    def _descended(
        self, tokens: Tensor, settled: Tensor, settings: TextDescent, generator: torch.Generator
    ) -> Tensor:
        """Return embeddings `(length, d)` after Adam, those of settled tokens as they are."""
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
        """Return tokens that would lower the distance most at a place, by its derivative (Ebrahimi et al. 2018)."""
        embeddings = self._table[tokens].requires_grad_()
        loss = self._distances(tokens[None], embeddings[None]).mean()
        (slope,) = torch.autograd.grad(loss, embeddings)
        return (self._table @ slope[place]).topk(count, largest=False).indices

    def _exchanged(self, tokens: Tensor, nearest: Tensor, pool: Tensor, known: Tensor) -> Tensor:
        """Return the tokens after one turn in which every place takes the best of some.

        Tried are its `nearest (length, n)`, the `pool`, those that the derivative speaks for, and to change places.
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
    """Return `tokens` with that at `place` and that at each of `others` changed for one another, a row each."""
    rows = tokens.repeat(len(others), 1)
    rows[:, place] = tokens[others]
    rows[torch.arange(len(others)), others] = tokens[place]
    return rows
