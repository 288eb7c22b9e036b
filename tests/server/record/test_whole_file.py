"""Files that are whole, whoever writes them and however often."""

import threading

from metaleak.server.record.whole_file import remove_parts, whole_of, write_whole


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


def test_what_a_killed_writer_left_is_known_and_removed(tmp_path):
    part = ".scores.parquet.0123456789abcdef.part"
    assert whole_of(part) == "scores.parquet"
    assert [whole_of(name) for name in ("scores.parquet", ".part", ".notes.part", f"x{part}")] == [None] * 4
    for name in (part, ".other.0123456789abcdef.part", "scores.parquet"):
        (tmp_path / name).touch()
    remove_parts(tmp_path, ["scores.parquet"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.0123456789abcdef.part", "scores.parquet"]
