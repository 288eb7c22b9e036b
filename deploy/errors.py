"""Errors as a person reads them."""


class Interrupted(RuntimeError):
    """The user ended the simulation; what was recorded is complete up to the last reply."""


def one_line(error: BaseException) -> str:
    """Return what went wrong in one line: the error's own first line, with its type where that says more."""
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, ValueError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
