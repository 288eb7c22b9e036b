"""The user's own sentences, and a small set of made-up ones that needs no file."""

import csv
from itertools import product
from pathlib import Path

from pydantic import field_validator

from metaleak.clients.datasets.text import LabeledText, TextData

_LARGEST = 256 << 20
"""The most bytes of text that are read."""


class OwnText(TextData):
    """The user's own sentences.

    `path` is a CSV file (or TSV, by its name) whose first row names its columns; `sentence` and `label` are the
    names of the columns that are used. Or `path` is a folder with one folder per class, and in these one `.txt` file
    per sentence.
    """

    path: Path
    sentence: str = "sentence"
    label: str = "label"

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    def text(self) -> LabeledText:
        """Return the sentences, with the classes in the order of their names.

        Raises `ValueError` for a path that is missing, too large or not text, that lacks a column, or that has a row
        without a label or fewer than two classes.
        """
        pairs = self._of_folder() if self.path.is_dir() else self._of_table()
        classes = tuple(sorted({label for _, label in pairs}))
        if len(classes) < 2:
            raise ValueError(f"{self.path} has {len(classes)} classes, at least 2 are needed")
        numbers = {name: number for number, name in enumerate(classes)}
        return LabeledText(
            tuple(sentence for sentence, _ in pairs), tuple(numbers[label] for _, label in pairs), classes
        )

    def _of_table(self) -> list[tuple[str, str]]:
        if not self.path.is_file():
            raise ValueError(f"path is {self.path}, which is neither a file nor a folder")
        if self.path.stat().st_size > _LARGEST:
            raise ValueError(f"{self.path} has more than {_LARGEST >> 20} MiB")
        try:
            # Files from spreadsheets begin with a byte-order mark, and TSV has no quotes.
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                if self.path.suffix == ".tsv":
                    rows = csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)
                else:
                    rows = csv.DictReader(file)
                for column in (self.sentence, self.label):
                    if column not in (rows.fieldnames or ()):
                        there = ", ".join(rows.fieldnames or ())
                        raise ValueError(f"{self.path}: no column is called {column!r}; there are {there}")
                pairs = []
                for row in rows:
                    if not row[self.label]:
                        raise ValueError(f"{self.path}: the row that ends in line {rows.line_num} has no label")
                    pairs.append((row[self.sentence] or "", row[self.label]))
                return pairs
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path} is not a table of text: {error}") from error

    def _of_folder(self) -> list[tuple[str, str]]:
        files = sorted(file for file in self.path.glob("*/*.txt") if not file.parent.name.startswith("."))
        if sum(file.stat().st_size for file in files) > _LARGEST:
            raise ValueError(f"{self.path} has more than {_LARGEST >> 20} MiB")
        return [(file.read_text(encoding="utf-8", errors="replace").strip(), file.parent.name) for file in files]


_SUBJECTS = (
    *("the film", "the meal", "this hotel", "her new song", "the long trip", "our train", "that old book"),
    *("the play", "his phone", "the small cafe", "their service", "the concert", "my coat", "the garden"),
)
_VERBS = ("was", "seemed", "is still", "turned out", "looked")
_DEGREES = ("", "very ", "rather ", "quite ")
_JUDGMENTS = {
    "negative": ("dull", "broken", "awful", "far too slow", "noisy and dirty", "a waste of money"),
    "positive": ("bright", "charming", "delightful", "well made", "calm and clean", "worth every cent"),
}


class MadeUpSentences(TextData):
    """3 360 short sentences of two classes, composed of parts, such as "the film was very dull"."""

    def text(self) -> LabeledText:
        """Return all sentences that can be composed, ordered by class."""
        pairs = [
            (f"{subject} {verb} {degree}{judgment} .", label)
            for label, judgments in enumerate(_JUDGMENTS.values())
            for subject, verb, degree, judgment in product(_SUBJECTS, _VERBS, _DEGREES, judgments)
        ]
        return LabeledText(
            tuple(sentence for sentence, _ in pairs), tuple(label for _, label in pairs), tuple(_JUDGMENTS)
        )
