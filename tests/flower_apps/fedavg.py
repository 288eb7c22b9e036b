"""FedAvg on a PyTorch module, in both of Flower's worlds: the client trains for local epochs and returns its weights.

`run_app` runs it in this process, with the line that wraps it, and returns who held what. Images are MNIST digits,
normalized; the clients hold numbers of them that differ, and each client sits on any node.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig
from flwr.server.compat import LegacyContext
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from local_grid import LocalGrid
from torch import Tensor, nn

from flower_apps.networks import initialized
from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.server import CuriousServer

MEAN, STD = 0.1307, 0.3081
"""What the clients normalize pixels in [0, 1] with."""

World = Literal["current", "classic"]


@dataclass(frozen=True)
class Training:
    """What a client does in a round: SGD over `epochs` shuffled passes, in batches of `batch_size`."""

    model: Literal["mlp", "cnn"] = "mlp"
    epochs: int = 1
    batch_size: int = 16
    rate: float = 0.1
    momentum: float = 0.0
    seed: int = 0

    def fit(self, network: nn.Module, images: Tensor, labels: Tensor, seed: list[int]) -> float:
        """Train `network` in place and return the mean loss of the last pass."""
        optimizer = torch.optim.SGD(network.parameters(), lr=self.rate, momentum=self.momentum)
        order = np.random.default_rng(seed)
        losses: list[float] = []
        for _ in range(self.epochs):
            losses = []
            for batch in torch.from_numpy(order.permutation(len(images))).split(self.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return float(np.mean(losses))


@dataclass(frozen=True)
class Truth:
    """Who held what: `members[k]` are the ascending indices into `images` and `labels` of client k's examples.

    `images (n, 1, 28, 28)` are normalized, as the networks take them. `record` is where the record is.
    """

    record: Path
    training: Training
    images: Tensor
    labels: Tensor
    members: dict[int, list[int]]

    @property
    def outsiders(self) -> list[int]:
        """The indices of the examples that no client holds."""
        held = {index for own in self.members.values() for index in own}
        return [index for index in range(len(self.images)) if index not in held]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits = EmbeddedMNIST().load()
    return (digits.examples.float() / 255 - MEAN) / STD, digits.labels


def _members(clients: int, fewest: int, most: int, seed: int) -> dict[int, list[int]]:
    """Return the examples of each client: between `fewest` and `most`, drawn without regard to their labels."""
    drawn = np.random.default_rng([seed, 1])
    sizes = np.linspace(fewest, most, clients).round().astype(int)
    order = drawn.permutation(len(_digits()[0]))[: sizes.sum()]
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return {client: sorted(part.tolist()) for client, part in enumerate(parts)}


def current_client(training: Training, members: dict[int, list[int]]) -> ClientApp:
    """The app of today's Flower: messages with array, config and metric records."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        round = int(message.content["config"]["server-round"])
        network = initialized(training.model, training.seed)
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        images, labels = _digits()
        own = members[partition]
        loss = training.fit(network, images[own], labels[own], [training.seed, 2, partition, round])
        told = {"train_loss": loss, "num-examples": len(own), "partition-id": partition}
        content = {"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord(told)}
        return Message(RecordDict(content), reply_to=message)

    return app


def classic_client(training: Training, members: dict[int, list[int]]) -> ClientApp:
    """The app of Flower's baselines: a `NumPyClient`, whose parameters are a list of arrays."""

    class FlowerClient(NumPyClient):
        def __init__(self, partition: int) -> None:
            self.partition = partition
            self.network = initialized(training.model, training.seed)

        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            named = zip(self.network.state_dict(), parameters, strict=True)
            self.network.load_state_dict(OrderedDict((name, torch.tensor(value)) for name, value in named))
            images, labels = _digits()
            own = members[self.partition]
            seed = [training.seed, 2, self.partition, int(config["server_round"])]
            loss = training.fit(self.network, images[own], labels[own], seed)
            told = {"train_loss": loss, "partition-id": self.partition}
            return _weights(self.network), len(own), told

    def client_fn(context: Context) -> Any:
        return FlowerClient(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn)


def current_server(training: Training, rounds: int, wrap: Callable[[Any], Any]) -> ServerApp:
    """The server of today's Flower, its strategy wrapped by `wrap`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = wrap(FedAvg(fraction_evaluate=0.0))
        arrays = ArrayRecord(initialized(training.model, training.seed).state_dict())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)

    return app


def classic_server(training: Training, rounds: int, wrap: Callable[[Any], Any]) -> ServerApp:
    """The server of Flower's baselines, its strategy wrapped by `wrap`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = ClassicFedAvg(
            fraction_evaluate=0.0,
            initial_parameters=ndarrays_to_parameters(_weights(initialized(training.model, training.seed))),
            on_fit_config_fn=lambda round: {"server_round": round},
        )
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=rounds), strategy=wrap(strategy))
        DefaultWorkflow()(grid, legacy)

    return app


def _weights(network: nn.Module) -> list[Any]:
    return [value.cpu().numpy().copy() for value in network.state_dict().values()]


def run_app(
    record: str | Path,
    model: Literal["mlp", "cnn"] = "mlp",
    epochs: int = 1,
    clients: int = 10,
    rounds: int = 1,
    world: World = "current",
    *,
    fewest: int = 24,
    most: int = 96,
    seed: int = 0,
    **training: Any,
) -> Truth:
    """Run FedAvg with a curious server and return who held what; the record is at `record`.

    `clients` hold from `fewest` to `most` examples each. `training` are further settings of `Training`: `batch_size`,
    `rate`, `momentum`. A client states its number as `partition-id`, which is not the number of its node.
    """
    settings = Training(model=model, epochs=epochs, seed=seed, **training)
    members = _members(clients, fewest, most, seed)
    client = {"current": current_client, "classic": classic_client}[world](settings, members)
    seats = np.random.default_rng([seed, 3]).permutation(clients).tolist()

    def hosted(message: Message, context: Context) -> Message:
        # Flower's simulation tells each node its partition in the same way.
        node = context.node_id - 10_000
        context.node_config = {"partition-id": seats[node], "num-partitions": clients}
        return client(message, context)

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    grid = LocalGrid(hosted, clients)
    server = {"current": current_server, "classic": classic_server}[world]
    server(settings, rounds, lambda strategy: CuriousServer(strategy, record, holds="weights"))(grid, context)
    return Truth(Path(record), settings, *_digits(), members)
