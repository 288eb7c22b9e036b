"""The templates of the pages: everything in them is escaped, and a name that is missing is an error."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def page_template(name: str) -> Template:
    """Return the template of this name."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def script(name: str) -> tuple[Markup, str]:
    """Return the script of this name, and its hash: a page allows that script and no other."""
    text = (_TEMPLATES / name).read_text()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"
