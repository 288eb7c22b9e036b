"""Data sets of sentences: labeled text as rows of tokens, all of one length."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.models.tokenizer import tokenizer_in, word_tokenizer


@dataclass(frozen=True)
class LabeledText:
    """`sentences`, their `labels` in [0, len(classes)), and the names of the `classes`."""

    sentences: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


class TextData(BaseModel):
    """Labeled sentences as tokens.

    `tokenizer` is a model's directory that holds a `tokenizer.json`; with `null` every word of the data, in lower
    case, is a token. A sentence has at most `length` tokens, including special ones, and is padded to that length.
    `longer` says whether longer sentences are left out or cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: Path | None = None
    length: Annotated[int, Field(ge=3, le=4096)] = 32
    longer: Literal["leave out", "cut"] = "leave out"

    @field_validator("tokenizer")
    @classmethod
    def _absolute_tokenizer(cls, value: Path | None) -> Path | None:
        # An actor loads the data, and its working directory is not the one of the user who wrote the path.
        return None if value is None else value.expanduser().absolute()

    @abstractmethod
    def text(self) -> LabeledText:
        """Return the sentences; raises `ValueError` or `OSError` in one line."""

    def load(self) -> LabeledExamples:
        """Return the sentences as tokens `(n, length)`.

        Raises `ValueError` in one line when the text or the tokenizer cannot be read, and when no sentence of a class
        is short enough.
        """
        text = self.text()
        tokenizer = word_tokenizer(text.sentences) if self.tokenizer is None else tokenizer_in(self.tokenizer)
        rows, labels = [], []
        for tokens, label in zip(tokenizer.encode(text.sentences), text.labels, strict=True):
            if len(tokens) > self.length:
                if self.longer == "leave out":
                    continue
                tokens = _cut(tokens, self.length, tokenizer.end)
            rows.append(tokens + [tokenizer.padding] * (self.length - len(tokens)))
            labels.append(label)
        lacking = sorted(set(range(len(text.classes))) - set(labels))
        if lacking:
            name = text.classes[lacking[0]]
            raise ValueError(f"length: no sentence of class {name!r} has at most {self.length} tokens")
        return LabeledExamples(
            examples=torch.tensor(rows),
            labels=torch.tensor(labels),
            classes=text.classes,
            modality="tokens",
            padding=tokenizer.padding,
            text_of=tokenizer.decode,
        )


def _cut(tokens: Sequence[int], length: int, end: int | None) -> list[int]:
    return [*tokens[:length]] if end is None else [*tokens[: length - 1], end]
