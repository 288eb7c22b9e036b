"""What the documentation site needs beside its pages: links that leave it, and the package for mkdocstrings."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_startup(**_: Any) -> None:
    """Link the folders where a package `metaleak` is looked for: no installation is read."""
    package = ROOT / "build" / "site-packages" / "metaleak"
    package.mkdir(parents=True, exist_ok=True)
    for room in ("attacks", "clients", "defenses", "deploy", "server"):
        if not (package / room).exists():
            (package / room).symlink_to(ROOT / room)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to files that are not part of the site name the file instead."""
    return re.sub(r"\[[^\]]*\]\(\.\./([^)]+)\)", r"`\1`", markdown)
