"""The finished parts of an attack that has not ended: kept on disk, and taken up again by the same command."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers
from metaleak.server.record.plain_file import plain_file
from metaleak.server.record.tensor_file import encoded, read_header, read_tensor
from metaleak.server.record.whole_file import whole_of, write_whole

_SCORES, _RECONSTRUCTIONS, _STATISTIC = "scores", "reconstructions", "statistic."
_PREFIX, _SUFFIX = "unfinished-", ".safetensors"


def is_unfinished(name: str) -> bool:
    """Return whether a file of this name belongs to an attack that has not ended."""
    return (whole_of(name) or name).startswith(_PREFIX)


class KeptParts:
    """Answers to parts of an attack's targets, a safetensors file each, in the directory `out` of its results.

    A part is found again for the same `decides`, round and places alone. `count` are those kept so far.
    """

    def __init__(self, out: Path, decides: str) -> None:
        self._out, self._decides = out, decides
        self.count = 0

    def answers(self, round: int, places: Tensor, ask: Callable[[], Answers]) -> Answers:
        """Return the answers to the targets at `places (n,)` in `round`, on the CPU: those kept or those of `ask`."""
        name = self._name(round, places)
        found = self._read(name, len(places))
        if found is None:
            found = ask().to("cpu")
            self._write(name, found)
        self.count += 1
        return found

    def forget(self) -> None:
        """Remove all parts."""
        for path in self._out.iterdir():
            if is_unfinished(path.name):
                path.unlink(missing_ok=True)

    def _name(self, round: int, places: Tensor) -> str:
        key = repr((self._decides, torch.__version__, places.device.type, round, places.tolist()))
        return _PREFIX + hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + _SUFFIX

    def _read(self, name: str, count: int) -> Answers | None:
        """Return what the file holds; `None` where there is none, or none that can be read."""
        try:
            with plain_file(self._out, name) as file:
                header = read_header(file)
                if _SCORES not in header.tensors or any(one.shape[:1] != (count,) for one in header.tensors.values()):
                    return None
                tensors = {key: torch.from_numpy(read_tensor(file, header, key)) for key in header.tensors}
        except (OSError, ValueError):
            return None
        return Answers(
            tensors[_SCORES],
            tensors.get(_RECONSTRUCTIONS),
            {key.removeprefix(_STATISTIC): value for key, value in tensors.items() if key.startswith(_STATISTIC)},
        )

    def _write(self, name: str, answers: Answers) -> None:
        tensors = {_STATISTIC + key: value for key, value in answers.statistics.items()} | {_SCORES: answers.scores}
        if answers.reconstructions is not None:
            tensors[_RECONSTRUCTIONS] = answers.reconstructions
        self._out.mkdir(parents=True, exist_ok=True)
        _, buffers = encoded({key: value.numpy() for key, value in tensors.items()}, {})
        write_whole(self._out / name, buffers)
