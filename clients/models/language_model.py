"""A transformer that classifies sentences, as a pure function of named parameters."""

import contextlib
from abc import abstractmethod
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaleak.clients.episode import Parameters
from metaleak.clients.models.attention_mask import additive_mask, sees_later_tokens
from metaleak.clients.models.tokenizer import Tokenizer
from metaleak.clients.models.transformer_parts import Attention, Embedding

_LORA = (".lora_a", ".lora_b")


class LanguageModel(BaseModel):
    """A transformer with a classifier of sentences, as a pure function of its parameters.

    Parameters have the names that `transformers` gives them. `learns` are patterns of the names of the parameters
    that are learned; the others are constants of the model and are in no message. With `lora` every query and value
    weight W becomes W + B A with learned factors of that rank (Hu et al. 2022), called `<layer>.lora_a` and
    `<layer>.lora_b`. Dropout is off. Attention is computed from plain operations, because fused attention has no
    second derivatives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learns: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    lora: Annotated[int, Field(ge=1, le=1024)] | None = None

    @abstractmethod
    def build(self, ways: int) -> nn.Module:
        """Return a new model of `transformers`; random parameters are drawn from torch's global generator.

        Raises `ValueError` in one line when it cannot be made.
        """

    @property
    def module(self) -> nn.Module:
        """The model of `transformers` that is used for computing, one per process."""
        return _built(self, 2, 0)

    @property
    def padding(self) -> int:
        """The token that makes sentences equally long."""
        return int(self.module.config.pad_token_id)  # type: ignore[union-attr, arg-type]

    @property
    def begin(self) -> int | None:
        """The token with which every sentence begins; `None` if there is none or it is not known."""
        return None

    @property
    def end(self) -> int | None:
        """The token with which every sentence ends; `None` if there is none or it is not known."""
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that turns sentences into the model's tokens; `None` if it is not known."""
        return None

    @property
    def embedding_table(self) -> str:
        """The name of the word embedding's weight `(V, d)`."""
        return next(name for name, value in self._every().items() if value is self._table())

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens that the model knows."""
        return int(self.module.config.vocab_size)  # type: ignore[union-attr, arg-type]

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the last layer's parameters that are learned."""
        return tuple(name for name in self._last() if name in self._names())

    def initialize(self, input_shape: tuple[int, ...], ways: int, generator: torch.Generator) -> Parameters:
        """Return the learned parameters for sentences `(T,)` and `ways` classes; `generator` seeds random ones.

        Raises `ValueError` in one line for examples that are not tokens, for sentences longer than the model allows,
        for a number of classes other than two with a classifier that is not learned, and for a pattern of `learns`
        that matches no parameter.
        """
        if len(input_shape) != 1:
            raise ValueError(f"the model takes tokens (T,), and the data's examples have shape {input_shape}")
        longest = _longest(self.module)
        if input_shape[0] > longest:
            raise ValueError(
                f"the model takes at most {longest} tokens, and the data's sentences have {input_shape[0]}"
            )
        if ways != 2 and not set(self._last()) <= set(self._names()):
            raise ValueError(f"learns: a classifier that is not learned has 2 classes, and the task has {ways}")
        seed = int(torch.randint(2**62, (), generator=generator))
        # A new module and not a cached one, because every experiment has its own.
        module = _seeded(self, ways, seed)
        known = dict(module.named_parameters())
        for pattern in self.learns:
            if not any(fnmatchcase(name, pattern) for name in (*known, *self._factors())):
                raise ValueError(
                    f"learns: no parameter is called {pattern!r}; there are {', '.join(list(known)[:6])}"
                )
        factors = {
            name: torch.randn(shape, generator=generator) * shape[1] ** -0.5
            if name.endswith(_LORA[0])
            else torch.zeros(shape)
            for name, shape in self._factors().items()
        }
        every = {**{name: value.detach().clone() for name, value in known.items()}, **factors}
        for name, value in every.items():
            if value.dtype != torch.float32:
                raise ValueError(f"the model's parameter {name} is {value.dtype}, it must be torch.float32")
        return {name: every[name] for name in self._names()}

    def __call__(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        """Return logits `(B, ways)` for `tokens (B, T)` int64."""
        return self._called(parameters, tokens).logits  # type: ignore[no-any-return]

    def logits_of(self, parameters: Parameters, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits `(B, ways)` with `embeddings (B, T, d)` in the place of the tokens' word embeddings.

        The `tokens (B, T)` only show where the padding is. Twice differentiable in parameters and embeddings.
        """
        return self._called(parameters, tokens, embeddings).logits  # type: ignore[no-any-return]

    def inputs_of(
        self, weight: str, parameters: Parameters, tokens: Tensor, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the inputs `(B, T, d)` of the layer with the parameter `weight` for `tokens (B, T)`; differentiable.

        With `embeddings (B, T, d)` these replace the word embeddings of the tokens, which then only show where the
        padding is. Later layers are not computed.
        """
        caught: list[Tensor] = []

        def catch(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            caught.append(arguments[0])
            raise _Caught

        # Determined first, because it is found out by computing, which the hook would end.
        _bidirectional(self)
        layer = self.module.get_submodule(weight.rpartition(".")[0])
        handle = layer.register_forward_pre_hook(catch)
        try:
            with contextlib.suppress(_Caught):
                self._called(parameters, tokens, embeddings)
        finally:
            handle.remove()
        return caught[0]

    def embedding_of(self, weight: str, parameters: Parameters, length: int) -> Embedding | None:
        """Return the inputs of the layer with the parameter `weight` as a function of a token and its place.

        `None` where they do not have the form of an `Embedding`: the inputs of later layers depend on all tokens.
        Places are the first `length` ones.
        """
        seen: list[tuple[nn.LayerNorm, Tensor, Tensor]] = []

        def see(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(layer, nn.LayerNorm):
                seen.append((layer, arguments[0], output))

        norms = [layer for layer in self.module.modules() if isinstance(layer, nn.LayerNorm)]
        handles = [layer.register_forward_hook(see) for layer in norms]
        # Three tokens, one of them among others, and no padding, which would be masked.
        other = [token for token in range(4) if token != self.padding]
        tokens = torch.tensor(other)[:, None].repeat(1, length)
        tokens[2, 1::2] = other[0]
        try:
            found = self.inputs_of(weight, parameters, tokens)
        finally:
            for handle in handles:
                handle.remove()
        if not seen or not torch.equal(seen[-1][2], found):
            return None
        every = self.every_parameter(parameters)
        norm, added, _ = seen[-1]
        name = next(name for name, layer in self.module.named_modules() if layer is norm)
        table = self.embedding_table
        places = added - every[table][tokens]
        if not torch.allclose(places, places[:1].expand_as(places), atol=1e-5):
            return None
        return Embedding(
            every[table].detach(),
            places[0].detach(),
            every[f"{name}.weight"].detach(),
            every[f"{name}.bias"].detach(),
            float(norm.eps),
        )

    def over_inputs(self, weight: str, gradient: Tensor) -> Tensor:
        """Return the gradient of a matrix `weight` with the layer's inputs as its last axis, `(..., units, d)`."""
        layer = self.module.get_submodule(weight.rpartition(".")[0])
        return gradient.mT if type(layer).__name__ == "Conv1D" and not weight.endswith(_LORA) else gradient

    def attention_of(self, weight: str) -> Attention | None:
        """Return the attention whose query, key or value weight is `weight`; `None` if the names do not show it."""
        layer, _, kind = weight.removesuffix(".weight").rpartition(".")
        names = {name: f"{layer}.{name}.weight" for name in ("query", "key")}
        if kind not in ("query", "key", "value") or not set(names.values()) <= set(self._every()):
            return None
        heads = int(self.module.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
        return Attention(names["query"], names["key"], heads)

    def every_parameter(self, parameters: Parameters) -> Parameters:
        """Return `parameters` together with those that are constants of the model."""
        device = next((value.device for value in parameters.values()), None)
        return {name: value.to(device) for name, value in self._every().items()} | parameters

    def _called(self, parameters: Parameters, tokens: Tensor, embeddings: Tensor | None = None) -> Any:
        dtype = next(value.dtype for value in parameters.values() if value.is_floating_point())

        def constant(value: Tensor) -> Tensor:
            return value.detach().to(tokens.device, dtype if value.is_floating_point() else value.dtype)

        every = {
            name: parameters[name] if name in parameters else constant(value) for name, value in self._every().items()
        }
        every |= {name: constant(value) for name, value in self.module.named_buffers()}
        for name in self._factors():
            if name.endswith(_LORA[0]):
                weight = name.removesuffix(_LORA[0]) + ".weight"
                other = name.removesuffix(_LORA[0]) + _LORA[1]
                every[weight] = every[weight] + parameters[other] @ parameters[name]
        mask = additive_mask(tokens != self.padding, dtype, later=_bidirectional(self))
        with sdpa_kernel(SDPBackend.MATH):
            given = {"input_ids": tokens} if embeddings is None else {"inputs_embeds": embeddings}
            return functional_call(self.module, every, (), {**given, "attention_mask": mask})

    def _last(self) -> list[str]:
        """Return the names of the last layer's parameters."""
        layers = self.module.named_modules()
        last, layer = [each for each in layers if list(each[1].parameters(recurse=False))][-1]
        return [f"{last}.{name}" for name, _ in layer.named_parameters(recurse=False)]

    def _table(self) -> Tensor:
        return self.module.get_input_embeddings().weight  # type: ignore[operator, no-any-return]

    def _every(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters())

    def _factors(self) -> dict[str, tuple[int, int]]:
        """Return the shapes of the LoRA factors by name."""
        return {} if self.lora is None else _factors_of(self, self.lora)

    def _names(self) -> tuple[str, ...]:
        """Return the names of the learned parameters in order: those that `learns` names, and LoRA's factors."""
        own = [name for name in self._every() if any(fnmatchcase(name, pattern) for pattern in self.learns)]
        return (*own, *self._factors())


class _Caught(Exception):
    """Raised to end a forward computation at the layer whose inputs are wanted."""


@lru_cache(maxsize=4)
def _built(model: LanguageModel, ways: int, seed: int) -> nn.Module:
    return _seeded(model, ways, seed)


def _seeded(model: LanguageModel, ways: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.build(ways)
    return module.requires_grad_(False)


@lru_cache(maxsize=4)
def _bidirectional(model: LanguageModel) -> bool:
    return sees_later_tokens(model.module)


@lru_cache(maxsize=4)
def _factors_of(model: LanguageModel, rank: int) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, int]] = {}
    for name, value in model.module.named_parameters():
        layer, _, last = name.rpartition(".")
        if last == "weight" and layer.rpartition(".")[2] in ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin"):
            shapes[layer + _LORA[0]] = (rank, value.shape[1])
            shapes[layer + _LORA[1]] = (value.shape[0], rank)
    if not shapes:
        raise ValueError("lora: the model has no query and value weights that are called so")
    return shapes


def _longest(module: nn.Module) -> int:
    """Return how many tokens a sentence may have."""
    config: Any = module.config
    embeddings = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    # RoBERTa's positions begin after its padding token.
    return int(embeddings) - (config.pad_token_id + 1 if "roberta" in str(config.model_type) else 0)
