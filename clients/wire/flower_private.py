"""All uses of Flower beyond its documented packages; these names may move in any version of Flower.

The documented packages are `flwr.app`, `flwr.clientapp`, `flwr.serverapp`, `flwr.server` and `flwr.simulation`.
"""

from flwr.app import Message

# The messages of classic strategies: what `configure_fit` returns and `aggregate_fit` receives.
from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar

# The codes of error replies: they decide whether to retry, and error replies made in this process carry them.
from flwr.common.constant import ErrorCode

# The handle on a client in classic strategies; its `cid` identifies the client that a reply comes from.
from flwr.server.client_proxy import ClientProxy

# `flwr.serverapp.Grid` uses it in its signatures, and a grid in this process needs one.
from flwr.supercore.run import Run

# Every message carries the run that it belongs to, which Flower's launchers set here.
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "ClientProxy",
    "Code",
    "ErrorCode",
    "EvaluateIns",
    "EvaluateRes",
    "FitIns",
    "FitRes",
    "Parameters",
    "Run",
    "Scalar",
    "begin_run",
    "name_message",
]


def begin_run(run: Run) -> None:
    """Assign the messages that this process creates to `run`."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run.run_id, 1, 1


def name_message(message: Message, name: str) -> None:
    """Set the id of `message` to `name`, as Flower's own grids do; the constructor does not accept an id."""
    message.metadata.__dict__["_message_id"] = name
