"""The record: open, complete up to the last reply, honest about damage."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from safetensors.numpy import load_file

from metaleak.server import Record, RecordError, RecordWriter


def gradients(learners, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "w": generator.normal(size=(learners, 3, 2)).astype(np.float32),
        "b": generator.normal(size=(learners, 3)).astype(np.float32),
    }


def parameters(seed=9):
    return {name: value[0] for name, value in gradients(1, seed).items()}


def written(path, flush=True):
    writer = RecordWriter(path)
    for round in (1, 2):
        sent = writer.sent(round, parameters(round))
        writer.reply(round, [4, 7], "node-b", sent, gradients(2, round))
        writer.reply(round, [1], "node-a", sent, gradients(1, 10 + round))
    if flush:
        writer.flush()
    return path


def test_reading_returns_what_was_written_ordered_by_learner(tmp_path):
    record = Record(written(tmp_path / "record"))
    learners, stacked = record.gradients(2)
    assert record.rounds == [1, 2]
    assert learners == [1, 4, 7]
    np.testing.assert_array_equal(stacked["w"], np.concatenate([gradients(1, 12)["w"], gradients(2, 2)["w"]]))
    np.testing.assert_array_equal(record.sent(2)["b"], parameters(2)["b"])


def test_public_tools_read_it_in_three_lines(tmp_path):
    path = written(tmp_path / "record")
    index = pd.read_parquet(path / "index")
    row = index[(index["round"] == 1) & (index["learner"] == 7)].iloc[0]
    gradient = load_file(path / row["reply"])["w"][row["row"]]
    np.testing.assert_array_equal(gradient, gradients(2, 1)["w"][1])


def test_a_run_that_ended_mid_round_loses_no_reply(tmp_path):
    path = written(tmp_path / "record", flush=False)
    assert len(list((path / "index").glob("*.parquet"))) == 1, "round 2 must not be indexed yet"
    assert Record(path).gradients(2)[0] == [1, 4, 7]


def test_a_record_is_never_overwritten(tmp_path):
    written(tmp_path / "record")
    with pytest.raises(RecordError, match="never overwritten"):
        RecordWriter(tmp_path / "record")


def test_nothing_in_it_is_pickled(tmp_path):
    path = written(tmp_path / "record")
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".safetensors", ".parquet", ".json"}


@pytest.mark.parametrize("part", ["replies/000001-0000.safetensors", "sent/000001-0000.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_a_damaged_part_is_named_in_one_line_and_the_rest_stays_readable(tmp_path, part, damage):
    path = written(tmp_path / "record")
    file = path / part
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5] if damage == "truncated" else b"\xff" * 64)
    record = Record(path)
    read = record.sent if part.startswith("sent") else record.gradients
    with pytest.raises(RecordError, match=part.replace(".", r"\.")) as caught:
        read(1)
    assert "\n" not in str(caught.value)
    assert record.gradients(2)[0] == [1, 4, 7]


def test_a_damaged_index_is_named(tmp_path):
    path = written(tmp_path / "record")
    part = next((path / "index").glob("*.parquet"))
    part.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(RecordError, match=part.name):
        Record(path)


def test_an_index_that_points_outside_is_refused(tmp_path):
    path = tmp_path / "record"
    writer = RecordWriter(path)
    writer.reply(1, [0], "node", "../../secret.safetensors", gradients(1))
    writer.flush()
    with pytest.raises(RecordError, match="outside the record"):
        Record(path)


def test_no_record_and_another_version_are_told_apart(tmp_path):
    with pytest.raises(RecordError, match="no record here"):
        Record(tmp_path)
    (tmp_path / "format.json").write_text('{"format": "metaleak-record", "version": 99}')
    with pytest.raises(RecordError, match="99"):
        Record(tmp_path)


def test_a_reply_that_is_not_stacked_is_refused(tmp_path):
    with pytest.raises(RecordError, match="not stacked"):
        RecordWriter(tmp_path / "record").reply(1, [1, 2], "node", "x", gradients(1))


@settings(max_examples=25, deadline=None)
@given(
    values=numpy_arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))),
    learners=st.permutations(range(20)),
)
def test_every_float32_survives_bit_for_bit(tmp_path_factory, values, learners):
    path = tmp_path_factory.mktemp("round-trip") / "record"
    writer = RecordWriter(path)
    chosen = list(learners)[: len(values)]
    writer.reply(3, chosen, "node", writer.sent(3, {"w": values[0]}), {"w": values})
    writer.flush()
    found, stacked = Record(path).gradients(3)
    assert found == sorted(chosen)
    assert stacked["w"].tobytes() == values[np.argsort(chosen)].tobytes()


def test_a_full_disk_leaves_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "record"
    writer = RecordWriter(path)
    sent = writer.sent(1, parameters())
    writer.reply(1, [0], "node", sent, gradients(1))

    def full(self, content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        writer.reply(1, [1], "node", sent, gradients(1))
    monkeypatch.undo()
    assert Record(path).gradients(1)[0] == [0]
    assert not list(path.rglob("*.part"))
