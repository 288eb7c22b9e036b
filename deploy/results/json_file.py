"""JSON files of the schema's classes: written in one step, read with a size limit and errors in one line."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from metaleak.deploy.printable import printable
from metaleak.server.record.plain_file import read_plain
from metaleak.server.record.whole_file import write_whole

MAX_JSON_FILE = 1 << 20
"""The most bytes of a file that describes one run or attack."""

Shape = TypeVar("Shape", bound=BaseModel)


def write_json(path: Path, content: BaseModel) -> None:
    """Write `content` to `path`, which is complete or as it was before."""
    write_whole(path, (json.dumps(content.model_dump(mode="json"), indent=2) + "\n").encode())


def read_json(root: Path, name: str, shape: type[Shape], limit: int = MAX_JSON_FILE) -> Shape | None:
    """Return the content of the plain file `root/name` of at most `limit` bytes, or `None` if it does not exist.

    Characters that must not be printed are replaced by blanks. Raises `ValueError` in one line that names the file
    and the field at fault.
    """
    path = root / name
    try:
        plain = json.loads(read_plain(root, name, limit).decode())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    try:
        return shape.model_validate(printable(plain))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_complaint(error)}") from error


def first_complaint(error: ValidationError) -> str:
    """Return pydantic's first complaint as `key: what is wrong`, without the value, which may be anybody's."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
