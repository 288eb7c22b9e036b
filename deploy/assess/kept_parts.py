"""The finished parts of an unfinished attack, kept on disk and reused by the same command."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers
from metaleak.deploy.errors import Interrupted
from metaleak.server.record.plain_file import plain_file
from metaleak.server.record.tensor_file import encoded, read_header, read_tensor
from metaleak.server.record.whole_file import whole_of, write_whole

_SCORES, _RECONSTRUCTIONS, _STATISTIC = "scores", "reconstructions", "statistic."
_PREFIX, _SUFFIX = "unfinished-", ".safetensors"


def is_unfinished(name: str) -> bool:
    """Return whether a file of this name belongs to an attack that has not ended."""
    return (whole_of(name) or name).startswith(_PREFIX)


class KeptParts:
    """The finished parts of an attack, each a safetensors file in the directory `out` of its results.

    A part is reused only if `decides`, the text of everything that its result depends on, is the same. `count` is the
    number of parts kept so far.
    """

    def __init__(self, out: Path, decides: str) -> None:
        self._out, self._decides = out, decides
        self.count = 0

    def answers(self, round: int, places: Tensor, ask: Callable[[], Answers]) -> Answers:
        """Return the answers to the targets at `places (n,)` in `round`, on the CPU: kept ones, or those of `ask`."""

        def tensors() -> dict[str, Tensor]:
            answers = ask().to("cpu")
            made = {} if answers.reconstructions is None else {_RECONSTRUCTIONS: answers.reconstructions}
            return (
                {_STATISTIC + name: value for name, value in answers.statistics.items()}
                | made
                | {_SCORES: answers.scores}
            )

        found = self.tensors((round, places.device.type, places.tolist()), tensors, len(places))
        return Answers(
            found[_SCORES],
            found.get(_RECONSTRUCTIONS),
            {key.removeprefix(_STATISTIC): value for key, value in found.items() if key.startswith(_STATISTIC)},
        )

    def tensors(
        self, part: object, find: Callable[[], Mapping[str, Tensor]], count: int | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of a `part`, identified by its `repr`, on the CPU: kept ones, or those of `find`.

        With `count` kept tensors of another length are not used.
        """
        name = self._name(part)
        found = self._read(name, count)
        if found is None:
            found = {key: value.cpu() for key, value in find().items()}
            self._write(name, found)
        self.count += 1
        return found

    def forget(self) -> None:
        """Remove all parts."""
        for path in self._out.iterdir():
            if is_unfinished(path.name):
                path.unlink(missing_ok=True)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Add the number of kept parts to the message of an interruption inside the block."""
        try:
            yield
        except Interrupted:
            if not self.count:
                raise
            raise Interrupted(
                f"interrupted; {self.count} parts of the attack are kept, the same command goes on from there"
            ) from None

    def _name(self, part: object) -> str:
        key = repr((self._decides, torch.__version__, part))
        return _PREFIX + hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + _SUFFIX

    def _read(self, name: str, count: int | None) -> dict[str, Tensor] | None:
        """Return the tensors in the file, or `None` when it does not exist or cannot be read."""
        try:
            with plain_file(self._out, name) as file:
                header = read_header(file)
                if count is not None and any(one.shape[:1] != (count,) for one in header.tensors.values()):
                    return None
                return {key: torch.from_numpy(read_tensor(file, header, key)) for key in header.tensors}
        except (OSError, ValueError):
            return None

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        _, buffers = encoded({key: value.numpy() for key, value in tensors.items()}, {})
        write_whole(self._out / name, buffers)
