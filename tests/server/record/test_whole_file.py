"""Files that are whole, whoever writes them and however often."""

import mmap
import os
import resource
import threading

import pytest

from metaleak.server.record.whole_file import remove_parts, whole_of, write_past_cache, write_whole


@pytest.fixture
def direct_io(tmp_path):
    """Skip the test where the file system of `tmp_path` has no direct I/O."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except (AttributeError, OSError):
        pytest.skip("no direct I/O here")
    (tmp_path / "probe").unlink()


class Meeting(list):
    """Buffers of which the last is only handed out when both writers have come this far."""

    def __init__(self, content, barrier):
        super().__init__([content])
        self._barrier = barrier

    def __iter__(self):
        yield from super().__iter__()
        self._barrier.wait(timeout=120)


def test_two_that_write_one_file_at_once_both_succeed(tmp_path):
    barrier, failed = threading.Barrier(2), []

    def write(content):
        try:
            write_whole(tmp_path / "report.html", Meeting(content, barrier))
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(content * 1000,)) for content in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert (tmp_path / "report.html").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("size", [1, 4096, 5000, 3 * 4096])
def test_what_is_written_past_the_cache_is_written_whole(direct_io, tmp_path, size):
    content = mmap.mmap(-1, size)
    content[:] = bytes(range(256)) * (size // 256) + bytes(size % 256)
    write_past_cache(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content[:]
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_written_past_the_cache_leaves_nothing(direct_io, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError, match="large") as raised:
            write_past_cache(tmp_path / "file", mmap.mmap(-1, 5 * 4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_known_and_removed(tmp_path):
    part = ".scores.parquet.0123456789abcdef.part"
    assert whole_of(part) == "scores.parquet"
    assert [whole_of(name) for name in ("scores.parquet", ".part", ".notes.part", f"x{part}")] == [None] * 4
    for name in (part, ".other.0123456789abcdef.part", "scores.parquet"):
        (tmp_path / name).touch()
    remove_parts(tmp_path, ["scores.parquet"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.0123456789abcdef.part", "scores.parquet"]
