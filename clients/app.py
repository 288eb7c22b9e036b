"""The Flower client: a node that hosts learners and answers with their meta-gradients, stacked."""

from collections.abc import Callable

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from metaleak.clients.episode import Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.learner import cohort_meta_gradients


def client_app(federation: Federation | Callable[[Context], Federation]) -> ClientApp:
    """Return the `ClientApp` of every node of `federation`, which may also be found from the node's context.

    A training message holds the parameters under `arrays` and, under `config`, `server-round`, `learner-ids` and
    `chunk` (how many learners are computed at once). The reply holds the learners' meta-gradients under `arrays`,
    one array a parameter with a leading learner dimension in the order of `learner-ids`, which it repeats under
    `config`. Neither ever holds an image or a label; a learner's loss, which no defence covers, stays with it too.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # One thread an actor: Ray already runs as many actors as there are cores.
        torch.set_num_threads(1)
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        numbers = [int(number) for number in _list(config, "learner-ids")]
        known = federation if isinstance(federation, Federation) else federation(context)
        learners = [known.learner(number) for number in numbers]
        gradients, _ = cohort_meta_gradients(
            learners,
            _parameters(message),
            round=int(str(config["server-round"])),
            chunk=int(str(config["chunk"])),
        )
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(value.numpy()) for name, value in gradients.items()}),
                "metrics": MetricRecord({"num-examples": len(numbers)}),
                "config": ConfigRecord({"learner-ids": numbers}),
            }
        )
        return Message(content, reply_to=message)

    return app


def _parameters(message: Message) -> Parameters:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def _list(config: ConfigRecord, name: str) -> list[int]:
    values = config[name]
    if not isinstance(values, list):
        raise ValueError(f"message config `{name}` must be a list, got {values!r}")
    return [int(value) for value in values]
