"""Everything that is used of Flower beyond its documented packages, which may move with any version.

The documented ones are `flwr.app`, `flwr.clientapp`, `flwr.serverapp`, `flwr.server` and `flwr.simulation`.
"""

from flwr.app import Message

# The classic strategies' messages: what `configure_fit` returns and `aggregate_fit` receives.
from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar

# What an error reply says went wrong; replies are tried again by it, and made with it in this process.
from flwr.common.constant import ErrorCode

# The classic strategies' handle on a client, whose `cid` says which one an answer comes from.
from flwr.server.client_proxy import ClientProxy

# `flwr.serverapp.Grid` has it in its signatures, and a grid of this process needs one.
from flwr.supercore.run import Run

# Every message is stamped with the run that it belongs to, which Flower's launchers set here.
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
    """Let the messages that this process makes belong to `run`."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run.run_id, 1, 1


def name_message(message: Message, name: str) -> None:
    """Give `message` the id `name`, as Flower's own grids do; its constructor takes none."""
    message.metadata.__dict__["_message_id"] = name
