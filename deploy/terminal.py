"""Tables and sentences for the terminal: at any width, lines break at spaces and never inside a word."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2
"""The number of blanks between two columns of a table."""

_NAME = 22
"""The least width of the column that names rows, if its names are that long."""


@dataclass(frozen=True)
class Grid:
    """A table that fits the terminal: cells break at spaces, and a table that is still too wide becomes several.

    `rows` have a cell for each of the `columns`. The first column names the row; it and the columns in `keys` are
    repeated in every table where there is room. The first column and those in `words` are aligned to the left. The
    `notes` follow below the last table, each as a paragraph. Only a word that is longer than the terminal is wide is
    broken.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Text | str]]
    notes: Sequence[str] = ()
    words: frozenset[str] = field(default_factory=frozenset)
    keys: frozenset[str] = field(default_factory=frozenset)

    @property
    def row_count(self) -> int:
        """How many rows the table has."""
        return len(self.rows)

    def without_columns(self, names: Iterable[str]) -> "Grid":
        """Return the table without the columns of these names."""
        left = set(names)
        kept = [place for place, name in enumerate(self.columns) if name not in left]
        rows = [[row[place] for place in kept] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in kept], rows=rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[_text(name) for name in self.columns], *([_text(cell) for cell in row] for row in self.rows)]
        columns = list(zip(*cells, strict=True))
        least = [max(map(_longest_word, column)) for column in columns]
        least[0] = max(least[0], min(max(map(_longest_line, columns[0])), _NAME))
        keys = [place for place, name in enumerate(self.columns) if place == 0 or name in self.keys]
        parts = _parts(least, options.max_width, keys)
        for number, places in enumerate(parts):
            yield _title(self.title, number, len(parts))
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            widths = _widths([columns[at] for at in places], [least[at] for at in places], options.max_width)
            for at, width in zip(places, widths, strict=True):
                left = at == 0 or self.columns[at] in self.words
                table.add_column(cells[0][at], width=width, justify="left" if left else "right", overflow="fold")
            for row in cells[1:]:
                table.add_row(*(row[at] for at in places), end_section=any("\n" in row[at].plain for at in places))
            yield table
            yield Text()
        yield from (Text(note, style="dim") for note in self.notes)


def say(text: str, error: bool = False) -> None:
    """Print a sentence; on a terminal, or where `COLUMNS` says how wide one is, it breaks at spaces."""
    console = Console(stderr=error)
    wrapped = console.is_terminal or "COLUMNS" in os.environ
    console.print(Text(text), highlight=False, soft_wrap=not wrapped)


def show(*grids: Grid) -> None:
    """Print tables."""
    console = Console()
    for grid in grids:
        console.print(grid)


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)


def _longest_line(text: Text) -> int:
    return max(map(cell_len, text.plain.split("\n")), default=0)


def _title(title: str, number: int, parts: int) -> Text:
    return Text(f"{title} ({number + 1} of {parts})" if parts > 1 else title, style="bold")


def _parts(least: Sequence[int], width: int, keys: Sequence[int]) -> list[list[int]]:
    """Return the columns of each table: the `keys`, and as many more as fit with their longest words."""
    others = [place for place in range(len(least)) if place not in keys]
    if sum(least[at] + _GAP for at in keys) + max((least[at] for at in others), default=0) > width:
        keys, others = [0], list(range(1, len(least)))
    parts = [list(keys)]
    for place in others:
        taken = sum(least[at] + _GAP for at in parts[-1]) + least[place]
        if taken > width and len(parts[-1]) > len(keys):
            parts.append(list(keys))
        parts[-1].append(place)
    return parts


def _widths(cells: Sequence[Sequence[Text]], least: Sequence[int], width: int) -> list[int]:
    """Return the width of each column, at least `least`: headings are narrowed first, then the widest column."""
    widths = [max(map(_longest_line, column)) for column in cells]
    bodies = [max([least[at], *map(_longest_line, column[1:])]) for at, column in enumerate(cells)]
    room = width - _GAP * (len(widths) - 1)
    for floor in (bodies, least):
        while sum(widths) > room:
            loose = [place for place in range(len(widths)) if widths[place] > floor[place]]
            if not loose:
                break
            widths[max(loose, key=lambda place: widths[place])] -= 1
    return widths
