"""The Flower client: a node that hosts learners and answers with their meta-gradients, stacked."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.device import Device, torch_device
from metaleak.clients.episode import Parameters
from metaleak.clients.faults import Absence
from metaleak.clients.federation import Federation
from metaleak.clients.wire.stacked_arrays import StackedArrays

_LOG = logging.getLogger("metaleak")


def client_app(federation: Federation | Callable[[Context], Federation], device: Device = "auto") -> ClientApp:
    """Return the `ClientApp` of every node of `federation`, which may also be found from the node's context.

    A training message holds the shared parameters under `arrays` and, under `config`, `server-round`, `learner-ids`
    and `chunk` (how many learners are computed at once). The reply holds the meta-gradients of the learners that
    answer under `arrays`, one array a parameter with a leading learner dimension in the order of `learner-ids`, which
    stand under `config`; there also `missing-ids` of those who do not answer, with `missing-kinds` (`dropped`,
    `late` or `failed`) and `missing-reasons` (the type of the error). Neither ever holds an image or a label; a
    learner's loss, which no defense covers, stays with it too.
    """
    app = ClientApp()
    # A function of this module goes to an actor as its name, a function made here would go with all it knows.
    app.train()(partial(_train, federation, device))
    return app


def _train(
    federation: Federation | Callable[[Context], Federation], device: Device, message: Message, context: Context
) -> Message:
    # One thread an actor: Ray already runs as many actors as there are cores.
    torch.set_num_threads(1)
    asked = _asked(message)
    known = federation if isinstance(federation, Federation) else federation(context)
    return Message(_answer(known, asked, torch_device(device)).content(), reply_to=message)


@dataclass(frozen=True)
class _Asked:
    learners: list[int]
    round: int
    chunk: int
    parameters: Parameters


@dataclass(frozen=True)
class _Answer:
    present: list[int]
    absent: dict[int, Absence]
    arrays: ArrayRecord

    def content(self) -> RecordDict:
        config = ConfigRecord({"learner-ids": self.present})
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
    parameters = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    return _Asked([int(number) for number in learners], round, chunk, parameters)


def _answer(federation: Federation, asked: _Asked, device: torch.device) -> _Answer:
    """Return what the asked learners say, chunk by chunk; who is missing changes no other chunk's numbers."""
    absent = {
        number: absence
        for number in asked.learners
        if (absence := federation.faults.absence(federation.seed, asked.round, number)) is not None
    }
    federation = federation.answering(asked.parameters)
    parameters = {name: value.to(device) for name, value in asked.parameters.items()}
    stack = StackedArrays(len(asked.learners) - len(absent), like=parameters)
    parameters = federation.whole(parameters)
    present: list[int] = []
    for start in range(0, len(asked.learners), asked.chunk):
        numbers = [number for number in asked.learners[start : start + asked.chunk] if number not in absent]
        try:
            _compute(federation, numbers, parameters, asked.round, stack)
            present += numbers
        except Exception as trouble:
            if _is_of_memory(trouble):
                # The node's trouble, not a learner's: to be asked again, with the same chunks and so the same bits.
                raise
            # One learner's trouble is not that of its cohort: let each of them try alone.
            for number in numbers:
                try:
                    _compute(federation, [number], parameters, asked.round, stack)
                    present.append(number)
                except Exception as alone:  # noqa: BLE001 (whatever a learner's model or rule raises)
                    # The type alone: a message may quote a label, a path, a number of the learner's.
                    absent[number] = Absence("failed", type(alone).__name__)
                    _LOG.warning("learner %d failed", number, exc_info=alone)
    return _Answer(present, absent, stack.record())


def _compute(
    federation: Federation, numbers: Sequence[int], parameters: Parameters, round: int, stack: StackedArrays
) -> None:
    if numbers:
        gradients, _ = cohort_meta_gradients(federation.learners(numbers), parameters, round, chunk=len(numbers))
        stack.append(gradients)


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
