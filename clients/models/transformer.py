"""Models of `transformers`: any BERT- or GPT-like model from a directory, and a BERT with random parameters."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import nn

from metaleak.clients.models.language_model import LanguageModel
from metaleak.clients.models.tokenizer import Tokenizer, tokenizer_in

MISSING = "a transformer needs `transformers`, which an extra installs: pip install 'metaleak[text]'"
"""The error message where the extra is missing."""


class Transformer(LanguageModel):
    """A transformer from a local `directory`, as `transformers` saves it: `config.json` and `model.safetensors`.

    `layers` is how many of its layers are used, from the first on; `null` uses all. Nothing is downloaded, no pickle
    is read, and no code from the directory is run.
    """

    directory: Path
    layers: Annotated[int, Field(ge=1)] | None = None

    @field_validator("directory")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def begin(self) -> int | None:
        """The token with which every sentence begins according to the directory's tokenizer, if it has one."""
        return None if self.tokenizer is None else self.tokenizer.begin

    @property
    def end(self) -> int | None:
        """The token with which every sentence ends according to the directory's tokenizer, if it has one."""
        return None if self.tokenizer is None else self.tokenizer.end

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The directory's tokenizer, if it has one."""
        return tokenizer_in(self.directory) if (self.directory / "tokenizer.json").is_file() else None

    def build(self, ways: int) -> nn.Module:
        """Return the model of the directory; a classifier that is missing or has other classes is drawn at random.

        Raises `ValueError` in one line for files that are missing or cannot be read, for weights that do not fit the
        configuration, and for `layers` when the configuration does not state their number.
        """
        path = self.directory / "config.json"
        try:
            plain = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"directory: {path} cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
        if not (self.directory / "model.safetensors").is_file():
            raise ValueError(f"directory: {self.directory} has no model.safetensors")
        if not isinstance(plain, dict) or plain.get("pad_token_id") is None:
            raise ValueError(f"directory: {path} names no pad_token_id, the token that makes sentences equally long")
        library = _library()
        counted = next((key for key in ("num_hidden_layers", "n_layer", "n_layers") if key in plain), None)
        if self.layers and counted is None:
            raise ValueError(f"layers: {path} does not say how many layers the model has")
        changes = {counted: min(self.layers, plain[counted])} if self.layers and counted else {}
        with _quietly():
            try:
                module, loaded = library.AutoModelForSequenceClassification.from_pretrained(
                    self.directory,
                    num_labels=ways,
                    attn_implementation="eager",
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    # Told below: a classifier of another number of classes is drawn.
                    ignore_mismatched_sizes=True,
                    **changes,
                )
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"directory: {self.directory} holds no model that can be read: {reason}") from error
        lacking = sorted({*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])})
        lacking = [name for name in lacking if not _of_classifier(module, name)]
        if lacking:
            raise ValueError(
                f"directory: {self.directory / 'model.safetensors'} lacks {len(lacking)} weights of the model, or has"
                f" them in another shape: {', '.join(lacking[:3])}"
            )
        made: nn.Module = module.eval()
        return made


class TinyBERT(LanguageModel):
    """A BERT (Devlin et al. 2019) of any size with random parameters; the default size is small enough for tests.

    `layers`, `width` (the dimension of its embeddings), attention `heads`, `vocabulary` and `positions` give its
    size. Weights are drawn with the standard deviation `deviation`.
    """

    layers: Annotated[int, Field(ge=1, le=96)] = 2
    width: Annotated[int, Field(ge=2, le=8192)] = 32
    heads: Annotated[int, Field(ge=1, le=128)] = 4
    vocabulary: Annotated[int, Field(ge=5, le=1_000_000)] = 200
    positions: Annotated[int, Field(ge=3, le=8192)] = 64
    deviation: Annotated[float, Field(gt=0, le=1)] = 0.1

    @property
    def begin(self) -> int | None:
        """The begin token of `word_tokenizer`."""
        return 2

    @property
    def end(self) -> int | None:
        """The end token of `word_tokenizer`."""
        return 3

    def build(self, ways: int) -> nn.Module:
        """Return a new model, its weights drawn with `deviation`: those of layer norms about 1, their biases about 0.

        Other biases and the padding token's embedding are 0.
        """
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of the {self.heads} heads")
        library = _library()
        settings = library.BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.positions,
            initializer_range=self.deviation,
            num_labels=ways,
            attn_implementation="eager",
        )
        module: nn.Module = library.BertForSequenceClassification(settings).eval()
        # In trained models they are not 1 and 0 either.
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                nn.init.normal_(layer.weight, 1.0, self.deviation)
                nn.init.normal_(layer.bias, 0.0, self.deviation)
        return module


def _of_classifier(module: nn.Module, name: str) -> bool:
    """Return whether a parameter belongs to the classifier or the pooler, and not to the model's layers."""
    return not name.startswith(f"{module.base_model_prefix}.") or "pooler" in name.split(".")


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(MISSING) from None
    return transformers


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the library's report that the classifier is new, which is intended."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
