"""Published data sets of sentences: CoLA, SST-2, Rotten Tomatoes."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from metaleak.clients.datasets.published import VARIABLE, Published
from metaleak.clients.datasets.text import LabeledText, TextData

_LARGEST = 64 << 20
"""The most bytes of text that are unpacked from an archive."""


class Corpus(TextData):
    """A published data set of sentences, of two classes.

    `data_dir` is the folder of data sets, by default the environment variable `METALEAK_DATA`; it is only ever read.
    """

    _name: ClassVar[str]
    _folder: ClassVar[str]
    _archive: ClassVar[str]

    data_dir: Path | None = None

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    def _found(self) -> Path:
        published = Published(data_dir=self.data_dir)
        folder = published.find((self._folder, "."), (self._archive,))
        if folder is None:
            base = published.folder()
            reason = (
                f"no data_dir is given and {VARIABLE} is not set"
                if base is None
                else f"{base / self._folder} lacks {self._archive}"
            )
            raise ValueError(f"{self._name} was not found: {reason}")
        return folder / self._archive


class CoLA(Corpus):
    """The training sentences of CoLA (Warstadt et al. 2019), acceptable English or not, from `cola_public.zip`."""

    _name = "CoLA"
    _folder = "cola"
    _archive = "cola_public.zip"

    def text(self) -> LabeledText:
        """Return 8 551 sentences."""
        lines = _lines(_unpacked(self._found(), "cola_public/raw/in_domain_train.tsv"), "utf-8")
        columns = [columns for line in lines if len(columns := line.split("\t")) == 4]
        return _text([row[3] for row in columns], [row[1] for row in columns], ("unacceptable", "acceptable"))


class SST2(Corpus):
    """The training sentences and phrases of SST-2 (Socher et al. 2013), from `train.tsv.gz`.

    A line of the file has two columns separated by a tab: the label, 0 or 1, and the sentence.
    """

    _name = "SST-2"
    _folder = "sst2"
    _archive = "train.tsv.gz"

    def text(self) -> LabeledText:
        """Return 67 349 phrases."""
        path = self._found()
        try:
            with gzip.open(path) as file:
                content = file.read(_LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if len(content) > _LARGEST:
            raise ValueError(f"{path} holds more than {_LARGEST >> 20} MiB")
        columns = [
            columns
            for line in _lines(content, "utf-8")
            if len(columns := line.split("\t")) == 2 and columns[0] in ("0", "1")
        ]
        return _text([row[1] for row in columns], [row[0] for row in columns], ("negative", "positive"))


class RottenTomatoes(Corpus):
    """Sentences of film reviews (Pang and Lee 2005), negative or positive, from `sentence_polarity.zip`."""

    _name = "Rotten Tomatoes"
    _folder = "rotten_tomatoes"
    _archive = "sentence_polarity.zip"

    def text(self) -> LabeledText:
        """Return 10 662 sentences."""
        path = self._found()
        parts = [
            [*_lines(_unpacked(path, f"sentence_polarity/rt-polarity.{part}"), "utf-8")] for part in ("neg", "pos")
        ]
        labels = [str(label) for label, part in enumerate(parts) for _ in part]
        return _text([line for part in parts for line in part], labels, ("negative", "positive"))


def _unpacked(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as packed:
            if packed.getinfo(name).file_size > _LARGEST:
                raise ValueError(f"{path}: {name} holds more than {_LARGEST >> 20} MiB")
            return packed.read(name)
    except KeyError:
        raise ValueError(f"{path}: {name} is missing") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _lines(content: bytes, encoding: str) -> Iterable[str]:
    for line in io.StringIO(content.decode(encoding, errors="replace")):
        if stripped := line.strip("\r\n "):
            yield stripped


def _text(sentences: list[str], labels: list[str], classes: tuple[str, str]) -> LabeledText:
    return LabeledText(tuple(one.strip() for one in sentences), tuple(int(one) for one in labels), classes)
