"""Errors, and their messages in one line."""

from metaleak.deploy.printable import printable


class Interrupted(BaseException):
    """Raised after Ctrl-C or SIGTERM; whatever was complete is kept on disk.

    It is not an `Exception`, so that no handler treats it as a failure.
    """


class WrongUsage(ValueError):
    """Raised for a file or a value that the user gave and that cannot be used."""


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
"""The libraries that only the extra `all` installs; the recorder does not need them."""


def one_line(error: BaseException) -> str:
    """Return the first line of the error's message, safe to print, with the error's type where that helps."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in NOT_IN_THE_RECORDER:
        return f"{error.name} is not installed: pip install 'metaleak[all]' brings all that a recorder does not need"
    text = str(printable(next(iter(str(error).splitlines()), "")))
    if isinstance(error, OSError) and error.strerror:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, ValueError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
