"""What all tests share."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# Files that start Ray: one worker runs them, one after the other. Two clusters at once would share the same cores,
# and some of these tests look for the only actors of the machine.
RAY = ("test_extending.py", "test_launch.py", "test_ray_engine.py", "test_ray_start.py", "test_worker_pool.py")
# Ray would let its processes wait for every other: beside the tests of another worker they would hardly come to run.
os.environ.setdefault("RAY_worker_niceness", "0")
LONGEST_FIRST = (*RAY, "test_deployment.py", "test_rooms.py")
# No test is about how long an example takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that the workers end at about the same time."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FIRST)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes and long text by their parameter: a test's name would hold megabytes, or the date of an archive."""
    return argname if isinstance(val, bytes) or (isinstance(val, str) and len(val) > 80) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let the tests of a file share a worker, and with it their fixtures, and those of all files of `RAY`."""
    # Here: the tests run without pytest-xdist too.
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        # pytest-xdist's own groups are a mark that it writes into the names of the tests; pytest 9.2 drops it.
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if file.rpartition("/")[2] in RAY else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors of these tests are too small to be shared between threads.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_width() -> None:
    # pytest-xdist tells its workers how wide the terminal is; what is printed here goes to none.
    os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session", autouse=True)
def _hears_ctrl_c() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so do its children; some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published archives: `METALEAK_DATA`, or `shared/data` beside the repository."""
    named = os.environ.get("METALEAK_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "mnist").is_dir():
        pytest.skip("the published archives are not here: METALEAK_DATA names their folder")
    return folder
