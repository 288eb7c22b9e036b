"""Options that several commands have in common."""

from typing import Annotated

import typer

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. --set rounds=50 (repeatable)."),
]
Wide = Annotated[bool, typer.Option("--wide", help="Show all columns of the tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
