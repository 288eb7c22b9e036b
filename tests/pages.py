"""The written pages, taken apart: their blocks of code, and the code in their text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy/cluster/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code on a page, in a `language`; `note` is the comment that stands in the line above it."""

    page: Path
    line: int
    note: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code on a page."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1] or "", found[2], found[3])
        for found in _BLOCK.finditer(text)
    ]


def noted(page: str, kind: str) -> dict[str, str]:
    """Return the blocks of a page below a comment `<!-- kind: name -->`, by name."""
    found = [block for block in blocks(ROOT / page) if block.note.startswith(f"{kind}: ")]
    return {block.note.removeprefix(f"{kind}: "): block.text for block in found}


def words_in_text(page: Path) -> list[str]:
    """Return what stands between backticks outside the blocks, each in one line."""
    text = _BLOCK.sub("", page.read_text())
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def commands(shell: str) -> Iterator[list[str]]:
    """Return the words of each command in a block for a shell, without comments, redirections and variables."""
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if ">" in words:
            words = words[: words.index(">")]
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words
