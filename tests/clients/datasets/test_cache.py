"""What is kept in the user's cache is whole or absent."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metaleak.clients.datasets import cache as cache_module


def test_losing_a_race_is_no_error(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "mine").touch()
        (cache / "entry").mkdir()
        (cache / "entry" / "theirs").touch()

    entry = cache_module.kept_directory("entry", fill)
    assert [file.name for file in entry.iterdir()] == ["theirs"]
    assert not list(cache.glob(".unfinished-*"))


def test_a_cache_that_cannot_be_used_only_costs_time(tmp_path: Path, cache: Path) -> None:
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (cache_module.kept_images("entry", lambda: images) == images).all()
    (cache / "entry.npy").write_bytes((cache / "entry.npy").read_bytes()[:-3])
    assert (cache_module.kept_images("entry", lambda: images) == images).all()
    assert (cache_module.kept_images("entry", lambda: images + 1) == images).all(), "it was written anew"
    shutil.rmtree(cache)
    cache.write_text("a file where the directory should be")
    assert (cache_module.kept_images("entry", lambda: images) == images).all()


def test_the_cache_follows_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_module.cache_directory() == tmp_path / "cache" / "metaleak"
    for relative in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_module.cache_directory() == Path.home() / ".cache" / "metaleak"
