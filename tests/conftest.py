"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest
import torch


# Before pytest-xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests of a file share a worker, and with it their fixtures; named groups, the longest, come first."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors of these tests are too small to be shared between threads.
    torch.set_num_threads(1)


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
