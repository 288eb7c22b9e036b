"""Sentences whose gradient matches the observed one, by descent over embeddings and reorderings of the tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.text.input_space import input_space
from metaleak.attacks.text.matching.embedding_search import EmbeddingSearch, Words
from metaleak.attacks.text.matching.gradient_distance import GradientDistance, Sentences
from metaleak.attacks.text.matching.language_prior import prior_from
from metaleak.attacks.text.matrices import checked_matrices, matrix_of_a_layer
from metaleak.attacks.text.span_attack import sentences_of
from metaleak.attacks.text.text_attack import TextAttack
from metaleak.attacks.threat_model import Capability
from metaleak.clients.models import TextModel
from metaleak.clients.rules import adapted_names, support_entry

_GIB = 1 << 30


class TextMatching(TextAttack):
    """Reconstructs sentences by matching the gradients of any selection of parameters.

    This is the attack of Li, Xu and Dras (2024) on partial gradients, which builds on LAMP (Balunovic et al. 2022).
    It starts from the best of `candidates` random embeddings, in the best of as many orders of their tokens. `steps`
    of Adam (learning rate `rate`, multiplied by `decay` every `decay_every` steps) minimize the loss: the mean of
    1 - cos over tensors, plus the squared difference between the mean norms of the embeddings and of the model's word
    embeddings. From step `from_step`, at every multiple of `every`, every sentence takes the best of `proposals`
    orders of its tokens, by the loss plus `prior` times the mean negative log-likelihood under a trigram model of the
    files `texts` (without any, by the loss alone). The iterate of least loss is decoded to the nearest words by
    cosine.

    Beyond the paper, `exchanges` rounds may follow. Each applies the best of `proposals` changes to the words: a
    reordering, or a replacement of one word by one of the `nearest` words of its own or another position.

    If the gradient of the word embedding is shared, it is matched, too, and only words whose row is not 0 are used.
    Tensors whose gradient is 0 do not count.

    With `labels: unknown`, labels are drawn with the candidates. With `lengths: estimated`, the number of tokens is
    the rank of a matrix's gradient, for learners with a single sentence. About `memory` GiB of gradients are kept in
    memory at a time.
    """

    on_any_device: ClassVar[bool] = True

    labels: Literal["known", "unknown"] = "known"
    lengths: Literal["known", "estimated"] = "known"
    texts: tuple[Path, ...] = ()
    candidates: Annotated[int, Field(ge=1)] = 500
    steps: Annotated[int, Field(ge=1)] = 2000
    rate: Annotated[float, Field(gt=0)] = 0.01
    decay: Annotated[float, Field(gt=0, le=1)] = 0.89
    decay_every: Annotated[int, Field(ge=1)] = 50
    from_step: Annotated[int, Field(ge=0)] = 200
    every: Annotated[int, Field(ge=1)] = 75
    proposals: Annotated[int, Field(ge=1)] = 200
    prior: Annotated[float, Field(ge=0)] = 0.2
    exchanges: Annotated[int, Field(ge=0)] = 0
    nearest: Annotated[int, Field(ge=1)] = 16
    memory: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("texts")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in value)

    @property
    def requires(self) -> frozenset[Capability]:
        """The labels and the lengths, if they are set as known."""
        known: dict[Capability, bool] = {"labels": self.labels == "known", "lengths": self.lengths == "known"}
        return frozenset(name for name, there in known.items() if there)

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the sentences of every learner, `(L, n, T)` int64, and their confidence, `(L, n)` in [0, 1].

        The confidence is the cosine of their gradient with the observed one. Raises `ValueError` in one line for a
        rule whose gradient is not that of the mean loss at the parameters sent, a mean over several learners, lengths
        that are missing or too large, several sentences of unknown lengths, texts that cannot be read, and gradients
        of another model.
        """
        return self.stages(observation, seed, progress)[-1]

    def stages(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> tuple[Reconstructions, ...]:
        """Return the result of `reconstruct` before and after the exchanges of words; once if there are none."""
        model = observation.model
        assert isinstance(model, TextModel)
        checked_matrices(observation, None)
        if support_entry(observation.rule) != "direct" or adapted_names(
            observation.rule, model, observation.parameters
        ):
            raise ValueError("needs the gradient of the mean loss at the parameters sent: rule fedsgd")
        if observation.mean_of > 1:
            raise ValueError(
                f"needs the gradient of one learner, and the server observed a mean over {observation.mean_of}"
            )
        device = next(iter(observation.gradients.values())).device
        prior = None
        if self.texts:
            if model.tokenizer is None:
                raise ValueError("texts: the model has no tokenizer to encode them")
            prior = prior_from(self.texts, model.tokenizer).to(device)
        sentences, labels = self._known(observation, device)
        every = model.every_parameter(observation.parameters)
        parts = []
        learners = len(sentences.tokens)
        entries = sum(value[0].numel() for value in observation.gradients.values())
        # Differentiation with respect to the embeddings takes several times the memory of the gradients.
        together = max(1, int(self.memory * _GIB / (4 * 6 * entries)))
        for begin in range(0, learners, together):
            rows = slice(begin, begin + together)
            some = Sentences(sentences.tokens[rows], sentences.known[rows], sentences.present[rows])
            gradients = {name: value[rows] for name, value in observation.gradients.items()}
            distance = GradientDistance(model, every, gradients, some, int(self.memory * _GIB / 16))
            generators = [generator_for(seed, begin + row, "text matching") for row in range(len(some.tokens))]
            words = Words(model, every[model.embedding_table].detach(), gradients.get(model.embedding_table))
            search = EmbeddingSearch(self, distance, some, words, prior, generators)

            def done(step: int, rows: int = len(some.tokens), before: int = begin) -> None:
                if progress is not None:
                    progress(before + rows * step // self.steps, learners)

            parts.append(search.best(None if labels is None else labels[rows], done))
        return tuple(_joined(stage) for stage in zip(*parts, strict=True))

    def _known(self, observation: Observation, device: torch.device) -> tuple[Sentences, Tensor | None]:
        """Return what is known about the sentences, and their labels `(L, n)`, `None` if unknown."""
        model = observation.model
        assert isinstance(model, TextModel)
        learners = len(next(iter(observation.gradients.values())))
        count, (length,) = sentences_of(observation), observation.input_shape
        sizes = self._lengths(observation, learners, count)
        if int(sizes.max()) > length:
            raise ValueError(f"lengths: sentences have at most {length} tokens, got {int(sizes.max())}")
        places = torch.arange(length)
        present = places < sizes[..., None]
        # Any token other than padding serves as a placeholder for an unknown one.
        some = next(token for token in range(2) if token != model.padding)
        tokens = torch.full(present.shape, some).masked_fill(~present, model.padding)
        known = ~present
        for token, at in ((model.begin, places == 0), (model.end, places == sizes[..., None] - 1)):
            if token is not None:
                here = at.expand_as(known)
                tokens, known = tokens.masked_fill(here, token), known | here
        sentences = Sentences(tokens.to(device), known.to(device), present.to(device))
        if self.labels == "unknown":
            return sentences, None
        positions = torch.arange(observation.ways)
        both = torch.cat([positions.repeat_interleave(size) for size in (observation.shots, observation.queries)])
        return sentences, both.expand(learners, -1).to(device)

    def _lengths(self, observation: Observation, learners: int, count: int) -> Tensor:
        """Return the number of tokens of each sentence, `(L, n)`."""
        if self.lengths == "known":
            if observation.lengths is None or observation.lengths.shape != (learners, count):
                given = "none" if observation.lengths is None else tuple(observation.lengths.shape)
                raise ValueError(f"lengths: needs those of {learners} x {count} sentences, got {given}")
            return observation.lengths.cpu()
        if count > 1:
            raise ValueError(f"lengths: can be estimated for a single sentence, and learners have {count}")
        model = observation.model
        assert isinstance(model, TextModel)
        on_cpu = observation.to("cpu")
        weight = matrix_of_a_layer(on_cpu, self.matrix)
        ranks = [len(input_space(model.over_inputs(weight, one)).basis) for one in on_cpu.gradients[weight]]
        return torch.tensor(ranks)[:, None].clamp(max=observation.input_shape[0])


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> Reconstructions:
    """Return the sentences of all learners `(L, n, T)` and their confidence, from batches with cosines `(l,)`."""
    examples = torch.cat([made.cpu() for made, _ in parts])
    cosines = torch.cat([cosine.cpu().double() for _, cosine in parts]).clamp(0, 1)
    return Reconstructions(examples, cosines[:, None].expand(-1, examples.shape[1]))
