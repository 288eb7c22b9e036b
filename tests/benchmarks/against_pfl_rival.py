"""pfl-research's side of `against_pfl.py`: federated averaging in its own simulator, as its tutorials write it.

Runs in pfl's environment, which need not have metaleak. Under `torchrun` the workers share the cohort.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# The model comes first: it tells pfl which framework is in use.
from pfl.model.pytorch import PyTorchModel  # isort: skip
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted


class Network(torch.nn.Module):
    """The MLP of both sides; its parameters have metaleak's names."""

    def __init__(self, pixels: int, hidden: int, ways: int) -> None:
        super().__init__()
        self.layer1 = torch.nn.Linear(pixels, hidden)
        self.head = torch.nn.Linear(hidden, ways)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.layer1(images.flatten(1))))

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(images, labels).item() * len(images), len(images))}


class Clock(TrainingProcessCallback):
    """Notes when each central iteration ended, and the parameters after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.worked: list[float] = []
        self.first: dict[str, np.ndarray] = {}

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if not self.ends:
            self.first = parameters(model.pytorch_model)
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())
        return False, Metrics()


def parameters(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of the network's parameters."""
    return {name: value.detach().numpy().copy() for name, value in network.named_parameters()}


@contextmanager
def profiled(path: str | None) -> Iterator[None]:
    """Profile what runs inside, if there is a `path` for what is found."""
    if path is None:
        yield
        return
    import cProfile

    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    profile.dump_stats(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--profile")
    options = parser.parse_args()

    torch.set_num_threads(1)
    images = torch.from_numpy(np.load(options.inputs / "images.npy"))
    labels = torch.from_numpy(np.load(options.inputs / "labels.npy"))
    initial = {name: torch.from_numpy(value) for name, value in np.load(options.inputs / "initial.npz").items()}
    hidden, pixels = initial["layer1.weight"].shape
    network = Network(pixels, hidden, len(initial["head.bias"]))
    network.load_state_dict(initial)

    # All users' tensors lie in memory, made once: pfl's guide calls this the fastest way.
    users = [
        PyTorchTensorDataset((one, two), user_id=str(number))
        for number, (one, two) in enumerate(zip(images, labels, strict=True))
    ]
    backend = SimulatedBackend(
        training_data=FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", range(len(users)))),
        val_data=None,
    )
    clock = Clock()
    with profiled(options.profile):
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                # The first iteration warms up; pfl also evaluates the users in it, and in no later one.
                central_num_iterations=options.rounds + 1,
                evaluation_frequency=options.rounds + 1,
                train_cohort_size=len(users),
                val_cohort_size=None,
            ),
            backend=backend,
            model=PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0)),
            model_train_params=NNTrainHyperParams(
                local_num_epochs=1, local_learning_rate=options.rate, local_batch_size=None
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=None),
            callbacks=[clock],
        )
    if int(os.environ.get("RANK", "0")) == 0:
        np.savez(options.result.with_suffix(".npz"), **clock.first)
        options.result.write_text(
            json.dumps(
                {
                    "seconds": np.diff(clock.ends).tolist(),
                    "cpu_seconds": np.diff(clock.worked).tolist(),
                    "workers": int(os.environ.get("WORLD_SIZE", "1")),
                    "versions": {"pfl": version("pfl"), "torch": torch.__version__},
                }
            )
        )


if __name__ == "__main__":
    main()
