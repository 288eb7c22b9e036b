"""A node's own secret: made once, kept, and for nobody else to read."""

import stat
import threading

import pytest

from metaleak.clients.noise_key import noise_key


def test_it_is_made_once_and_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "home" / "noise-key"
    key = noise_key(path)
    assert len(key) == 32
    assert noise_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["noise-key"]
    assert noise_key(tmp_path / "other") != key


def test_of_several_that_make_it_together_all_have_the_same(tmp_path):
    keys = []
    threads = [threading.Thread(target=lambda: keys.append(noise_key(tmp_path / "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path):
    noise_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ValueError, match="others may read it"):
        noise_key(tmp_path / "key")


def test_a_key_of_another_length_is_refused(tmp_path):
    noise_key(tmp_path / "key")
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, a noise key has 32"):
        noise_key(tmp_path / "key")
