"""Errors as a person reads them."""

from metaleak.deploy.printable import printable


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM has ended what was going on; what is whole is kept.

    No `Exception`: nothing on the way may take it for a failure.
    """


class WrongUsage(ValueError):
    """A file or a value that the user gave and that cannot be used."""


NOT_IN_THE_RECORDER = frozenset(
    (
        "cryptography",
        "dp_accounting",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "mlxtend",
        "PIL",
        "pydantic",
        "ray",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
        "torch",
        "torchvision",
        "typer",
        "typing_extensions",
        "yaml",
    )
)
"""The libraries that the extra `all` brings; a recorder does without."""


def one_line(error: BaseException) -> str:
    """Return what went wrong in one line that a terminal may print: the error's first, with its type where needed."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in NOT_IN_THE_RECORDER:
        return f"{error.name} is not installed: pip install 'metaleak[all]' brings all that is more than a recorder"
    text = str(printable(next(iter(str(error).splitlines()), "")))
    if isinstance(error, OSError) and error.strerror:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, ValueError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
