"""The Flower client: a node that hosts learners and replies with their stacked meta-gradients."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from metaleak.clients.cohort import cohort_in_parts
from metaleak.clients.device import Device, torch_device
from metaleak.clients.episode import Parameters
from metaleak.clients.faults import Absence
from metaleak.clients.federation import Federation
from metaleak.clients.kept_memory import keep_freed_memory
from metaleak.clients.wire.reply_file import ReplyFile
from metaleak.clients.wire.stacked_arrays import StackedArrays
from metaleak.clients.wire.summed_arrays import SummedArrays

_LOG = logging.getLogger("metaleak")


def client_app(
    federation: Federation | Callable[[Context], Federation], device: Device = "auto", arriving: Path | None = None
) -> ClientApp:
    """Return the `ClientApp` of every node of `federation`, which may also be a function of the node's context.

    A training message holds the shared parameters under `arrays` and, under `config`, `server-round`, `learner-ids`
    and `chunk` (how many learners are computed at once). The reply holds the meta-gradients of the learners that
    answer under `arrays`: one array per parameter, whose leading axis is over the learners in the order of the
    reply's `learner-ids` under `config`. There are also the `missing-ids` of learners that do not answer, with
    `missing-kinds` (`dropped`, `late`, `failed` or `refused`) and `missing-reasons` (the type of the error). No
    message holds an image, a label, or a learner's loss, which no defense covers.

    A message with `sum-from`, the position in the round of its first learner, is answered with partial sums of the
    meta-gradients, see `SummedArrays`; `summed` is then true under `config`. A node on the server's machine writes
    single meta-gradients into the folder `arriving`, if there is room, and replies with the file's name, see
    `ReplyFile`.
    """
    app = ClientApp()
    # A function of this module is pickled as its name, a function made here with everything that it refers to.
    app.train()(partial(_train, federation, device, arriving))
    return app


def _train(
    federation: Federation | Callable[[Context], Federation],
    device: Device,
    arriving: Path | None,
    message: Message,
    context: Context,
) -> Message:
    # One thread per actor: Ray already runs as many actors as there are cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    asked = _asked(message)
    known = federation if isinstance(federation, Federation) else federation(context)
    return Message(_answer(known, asked, torch_device(device), arriving).content(), reply_to=message)


@dataclass(frozen=True)
class _Asked:
    learners: list[int]
    round: int
    chunk: int
    parameters: Parameters
    sum_from: int | None


@dataclass(frozen=True)
class _Answer:
    present: list[int]
    absent: dict[int, Absence]
    arrays: ArrayRecord
    summed: bool

    def content(self) -> RecordDict:
        config = ConfigRecord({"learner-ids": self.present})
        if self.summed:
            config["summed"] = True
        if self.absent:
            config["missing-ids"] = list(self.absent)
            config["missing-kinds"] = [str(absence.kind) for absence in self.absent.values()]
            config["missing-reasons"] = [absence.reason for absence in self.absent.values()]
        metrics = MetricRecord({"num-examples": len(self.present)})
        return RecordDict({"arrays": self.arrays, "metrics": metrics, "config": config})


def _asked(message: Message) -> _Asked:
    arrays, config = message.content["arrays"], message.content["config"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise ValueError("a training message needs the records `arrays` and `config`")
    learners, round, chunk = (config[name] for name in ("learner-ids", "server-round", "chunk"))
    if not isinstance(learners, list) or not isinstance(round, int) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(
            f"message config: learner-ids {learners!r}, server-round {round!r} or chunk {chunk!r} is wrong"
        )
    sum_from = config.get("sum-from")
    if sum_from is not None and (not isinstance(sum_from, int) or sum_from < 0):
        raise ValueError(f"message config: sum-from {sum_from!r} is wrong")
    parameters = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    return _Asked([int(number) for number in learners], round, chunk, parameters, sum_from)


def _answer(federation: Federation, asked: _Asked, device: torch.device, arriving: Path | None) -> _Answer:
    """Return the answer of the asked learners, chunk by chunk; a missing learner changes no other chunk's numbers."""
    absent = {
        number: absence
        for number in asked.learners
        if (absence := federation.faults.absence(federation.seed, asked.round, number)) is not None
    }
    federation = federation.answering(asked.parameters)
    parameters = {name: value.to(device) for name, value in asked.parameters.items()}
    answers = _Gradients(asked, len(asked.learners) - len(absent), parameters, arriving)
    parameters = federation.whole(parameters)
    for start in range(0, len(asked.learners), asked.chunk):
        numbers = [number for number in asked.learners[start : start + asked.chunk] if number not in absent]
        try:
            answers.add(numbers, _computed(federation, numbers, parameters, asked.round))
        except Exception as trouble:
            if _is_of_memory(trouble) or isinstance(trouble, OSError):
                # An error of the node, not of a learner: it is asked again, with the same chunks and the same bits.
                raise
            # One learner's error must not affect the others of its chunk: each is computed alone.
            for number in numbers:
                try:
                    answers.add([number], _computed(federation, [number], parameters, asked.round))
                except Exception as alone:  # noqa: BLE001 (whatever a learner's model or rule raises)
                    # Only the type: an error's message may quote a label, a path or a number of the learner.
                    absent[number] = Absence("failed", type(alone).__name__)
                    _LOG.warning("learner %d failed", number, exc_info=alone)
    absent |= {number: Absence("refused", reason) for number, reason in answers.refused.items()}
    return _Answer(answers.present, absent, answers.record(), asked.sum_from is not None)


class _Gradients:
    """The learners' meta-gradients in the form that was asked for: stacked, or as partial sums."""

    def __init__(self, asked: _Asked, rows: int, like: Parameters, arriving: Path | None) -> None:
        self.present: list[int] = []
        self.refused: dict[int, str] = {}
        self._offsets = {number: offset for offset, number in enumerate(asked.learners)}
        self._numbers = asked.learners
        self._stack = _stack(rows, like, arriving) if asked.sum_from is None else None
        self._sums = None if asked.sum_from is None else SummedArrays(asked.sum_from, len(asked.learners), like)

    def add(self, numbers: Sequence[int], parts: Iterator[Parameters]) -> None:
        """Add the meta-gradients of these learners, in parts of some learners each."""
        done = 0
        for gradients in parts:
            count = len(next(iter(gradients.values())))
            self._add(numbers[done : done + count], gradients)
            done += count

    def _add(self, numbers: Sequence[int], gradients: Parameters) -> None:
        refused: dict[int, str] = {}
        if self._stack is not None:
            self._stack.append(gradients)
        elif self._sums is not None:
            offsets = [self._offsets[number] for number in numbers]
            refused = {self._numbers[offset]: why for offset, why in self._sums.append(offsets, gradients).items()}
        self.refused |= refused
        self.present += [number for number in numbers if number not in refused]

    def record(self) -> ArrayRecord:
        made = self._stack or self._sums
        assert made is not None
        return made.record()


def _stack(rows: int, like: Parameters, arriving: Path | None) -> StackedArrays | ReplyFile:
    """Return where gradients are written: into a file in `arriving` if it has room for them, or else to memory."""
    if arriving is not None and rows:
        try:
            return ReplyFile(arriving, rows, like)
        except OSError as error:
            _LOG.debug("a reply is sent and not handed over: %s", error)
    return StackedArrays(rows, like)


def _computed(
    federation: Federation, numbers: Sequence[int], parameters: Parameters, round: int
) -> Iterator[Parameters]:
    if not numbers:
        return iter(())
    return cohort_in_parts(federation.learners(numbers), parameters, round)


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
