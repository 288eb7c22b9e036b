"""A cache of its own for every test, and the one line that a data set fails with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from metaleak.clients.datasets import DataSet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and no data sets but those of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("METALEAK_DATA", raising=False)
    return tmp_path / "cache" / "metaleak"


@pytest.fixture
def complaint() -> Callable[[DataSet], str]:
    """A function that returns the one line with which a data set's `load` fails."""

    def complain(data: DataSet) -> str:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (the callers look at the message)
            data.load()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return complain
