"""The record: open, complete up to the last reply, honest about damage."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from safetensors.numpy import load_file, save_file

from metaleak.server import BackgroundWriter, Record, RecordError, RecordWriter
from metaleak.server.record.statements import recordable


def gradients(learners, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "w": generator.normal(size=(learners, 3, 2)).astype(np.float32),
        "b": generator.normal(size=(learners, 3)).astype(np.float32),
    }


def parameters(seed=9):
    return {name: value[0] for name, value in gradients(1, seed).items()}


def written(path, flush=True, background=None):
    writer = written_by(RecordWriter(path, background))
    if flush:
        writer.flush()
    return path


def written_by(writer):
    for round in (1, 2):
        sent = writer.sent(round, parameters(round))
        writer.reply(round, [4, 7], "node-b", sent, gradients(2, round))
        writer.reply(round, [1], "node-a", sent, gradients(1, 10 + round))
    return writer


def test_reading_returns_what_was_written_ordered_by_learner(tmp_path):
    record = Record(written(tmp_path / "record"))
    learners, stacked = record.received(2)
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
    assert Record(path).received(2)[0] == [1, 4, 7]


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
    read = record.sent if part.startswith("sent") else record.received
    with pytest.raises(RecordError, match=part.replace(".", r"\.")) as caught:
        read(1)
    assert "\n" not in str(caught.value)
    assert record.received(2)[0] == [1, 4, 7]


def test_the_index_is_for_others_and_its_damage_hurts_nobody(tmp_path):
    path = written(tmp_path / "record")
    for part in (path / "index").glob("*.parquet"):
        part.write_bytes(b"PAR1 not really PAR1")
    assert Record(path).received(2)[0] == [1, 4, 7]


def test_the_index_says_what_the_headers_say(tmp_path):
    path = written(tmp_path / "record")
    rows = pd.read_parquet(path / "index").to_dict("records")
    assert rows == [asdict(entry) for entry in Record(path).entries]
    assert list(rows[0]) == ["round", "learner", "node", "sent", "reply", "row", "received"]


def stating(path, **stated):
    """A record of one round: learners 7 and 4 in one reply, and learner 1, which states nothing."""
    writer = RecordWriter(path)
    sent = writer.sent(1, parameters())
    writer.reply(1, [7, 4], "node-b", sent, gradients(2), **stated)
    writer.reply(1, [1], "node-a", sent, gradients(1), config=stated.get("config"))
    return Record(path)


def test_what_messages_state_beside_their_arrays_is_read_back(tmp_path):
    config = {"server-round": 1, "rate": -0.5, "name": 'a\n"b"', "both": [True, False], "loss": float("inf")}
    metrics = {"num-examples": [32, 48], "loss": [0.5, float("nan")], "classes": [[1, 2], []]}
    record = stating(tmp_path / "record", config=config, metrics=metrics)
    assert record.config(1) == config
    found = record.metrics(1)
    assert np.isnan(found[4].pop("loss"))
    assert found == {
        1: {},
        4: {"num-examples": 48, "classes": []},
        7: {"num-examples": 32, "loss": 0.5, "classes": [1, 2]},
    }


def test_a_round_is_told_only_what_all_its_messages_were(tmp_path):
    writer = RecordWriter(tmp_path / "record")
    sent = writer.sent(1, parameters())
    for learner, rate in enumerate((0.1, 0.1, 0.2)):
        config = {"rate": rate, "epochs": 5, "nan": float("nan"), **({"first": 1} if learner == 0 else {})}
        writer.reply(1, [learner], "node", sent, gradients(1), config=config)
    record = Record(tmp_path / "record")
    assert list(record.config(1)) == ["epochs", "nan"]
    assert [reply.config["rate"] for reply in record.replies(1)] == [0.1, 0.1, 0.2]


@pytest.mark.parametrize("holds", ["gradient", "delta", "weights", None])
def test_a_record_says_what_its_replies_hold(tmp_path, holds):
    RecordWriter(tmp_path / "record", holds=holds, message_type="train.two")
    assert (Record(tmp_path / "record").holds, Record(tmp_path / "record").message_type) == (holds, "train.two")
    RecordWriter.resume(tmp_path / "record", 0)
    assert Record(tmp_path / "record").holds == holds


@pytest.mark.parametrize("wrong", [{"holds": "gradients"}, {"message_type": ""}, {"message_type": "two\nlines"}])
def test_a_record_of_something_else_is_neither_written_nor_read(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecordWriter(tmp_path / "record", **wrong)
    assert not (tmp_path / "record").exists()
    RecordWriter(tmp_path / "record")
    said = json.loads((tmp_path / "record" / "format.json").read_text())
    changed = {name.replace("_", "-"): value for name, value in wrong.items()}
    (tmp_path / "record" / "format.json").write_text(json.dumps(said | changed))
    with pytest.raises(RecordError, match=f"format.json: damaged .{next(iter(wrong))}"):
        Record(tmp_path / "record")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"config": "{"}, "its config is not JSON"),
        ({"config": "[1]"}, "its config is not a JSON object with printable names"),
        ({"config": '{"a": {"b": 1}}'}, "neither a scalar nor a flat list"),
        ({"config": '{"a": null}'}, "neither a scalar nor a flat list"),
        ({"config": '{"a": [[1]]}'}, "neither a scalar nor a flat list"),
        ({"config": '{"a": 99999999999999999999}'}, "neither a scalar nor a flat list"),
        ({"config": '{"a": ' + "9" * 5000 + "}"}, "a whole number of more than 20 digits"),
        ({"config": '{"a": 1, "a": 2}'}, "a key twice"),
        ({"config": '{"two\\nlines": 1}'}, "its config is not a JSON object with printable names"),
        ({"config": '{"a": "' + "x" * 2**14 + '"}'}, "its config has .* characters, at most 16384 are allowed"),
        ({"config": '{"a": ' + "[" * 8000}, "nested too deeply"),
        ({"metrics": '{"a": 1}'}, "one value for each of its 2 learners"),
        ({"metrics": '{"a": [1]}'}, "one value for each of its 2 learners"),
        ({"metrics": '{"a": [1, {}]}'}, "neither a scalar nor a flat list"),
        ({"metrics": '{"a": "' + "x" * 2**17 + '"}'}, "its metrics has .* characters, at most 131072 are allowed"),
    ],
)
def test_statements_that_cannot_be_are_refused_in_one_line(tmp_path, wrong, says):
    path = written(tmp_path / "record")
    save_file(gradients(2), path / "replies" / "000001-0000.safetensors", RIGHT | wrong)
    for read in (Record(path).metrics, Record(path).config, Record(path).received):
        with pytest.raises(RecordError, match=says) as caught:
            read(1)
        assert "replies/000001-0000.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_no_header_takes_is_left_out_and_named():
    stated = {
        "whole": np.int64(3),
        "half": np.float64(0.5),
        "list": (1, 2.5),
        "bytes": b"cos\nsystem\n",
        "huge": 2**63,
        "nested": [[1]],
        "two\nlines": 1,
        "": 1,
        "long": "x" * 100,
        "half a pair": "\ud800",
        "last": True,
    }
    kept, left_out = recordable(stated, 80)
    assert kept == {"half": 0.5, "list": [1, 2.5], "last": True}
    assert left_out == ["whole", "bytes", "huge", "nested", "two\nlines", "", "long", "half a pair"]
    assert len(json.dumps(kept)) <= 80


SENT = "sent/000001-0000.safetensors"
RIGHT = {"round": "1", "node": "n", "sent": SENT, "received": "1.5", "learners": "4,7"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sent": "../../secret.safetensors"}, "no file in sent"),
        ({"sent": "/etc/passwd"}, "no file in sent"),
        ({"sent": "sent/../format.json"}, "no file in sent"),
        ({"round": "2"}, "another round"),
        ({"round": "-1"}, "another round"),
        ({"learners": "4"}, "not stacked by its 1 learners"),
        ({"learners": "4,-7"}, "no learners"),
        ({"learners": "4,4"}, "a learner twice"),
        ({"received": "nan"}, "no time"),
        ({"node": "two\nlines"}, "no node"),
    ],
)
def test_a_header_that_cannot_be_is_refused_in_one_line(tmp_path, wrong, says):
    path = written(tmp_path / "record")
    save_file(gradients(2), path / "replies" / "000001-0000.safetensors", RIGHT | wrong)
    with pytest.raises(RecordError, match=says) as caught:
        Record(path).received(1)
    assert "replies/000001-0000.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Record(path).received(2)[0] == [1, 4, 7]


def test_the_writer_refuses_what_the_reader_would_refuse(tmp_path):
    writer = RecordWriter(tmp_path / "record")
    for arguments in (
        (1, [1, 2], "node", SENT, gradients(1)),
        (1, [1, 1], "node", SENT, gradients(2)),
        (1, [-1], "node", SENT, gradients(1)),
        (1, [1], "node", "../../secret.safetensors", gradients(1)),
        (1, [1], "two\nlines", SENT, gradients(1)),
        (-1, [1], "node", SENT, gradients(1)),
        (1, [1], "node", SENT, {}),
        (1, [1], "node", SENT, {"w": np.zeros(1, object)}),
        (1, [1], "node", SENT, {"__metadata__": np.zeros(1)}),
        (1, [1], "node", SENT, {"half a \ud83d pair": np.zeros(1)}),
        (1, [1], "node", SENT, {f"{number:020d}": np.zeros(1) for number in range(20_000)}),
    ):
        with pytest.raises(RecordError, match="not recorded"):
            writer.reply(*arguments)
    assert Record(tmp_path / "record").rounds == []


def test_a_learner_that_answered_twice_is_refused_by_its_name(tmp_path):
    path = written(tmp_path / "record")
    shutil.copy(path / "replies" / "000001-0000.safetensors", path / "replies" / "000001-0002.safetensors")
    with pytest.raises(RecordError, match="learner 4 is in round 1 more than once"):
        Record(path).received(1)
    assert Record(path).received(2)[0] == [1, 4, 7]


def of_other_kinds():
    """A good row, as those of a federation that was ill would lie in its record beside the others."""
    good = gradients(1)
    return {
        "a name is missing": {"w": good["w"]},
        "a name more": {**good, "c": good["b"]},
        "shapes": {"w": good["b"], "b": good["w"]},
        "double": {**good, "b": good["b"].astype(np.float64)},
        "half": {name: value.astype(np.float16) for name, value in good.items()},
        "whole": {**good, "b": good["b"].astype(np.int32)},
    }


@pytest.mark.parametrize("other", of_other_kinds().values(), ids=of_other_kinds())
@pytest.mark.parametrize("place", [0, 1])
def test_a_reply_of_another_kind_is_left_out_with_a_warning(tmp_path, caplog, other, place):
    writer = RecordWriter(tmp_path)
    sent = writer.sent(1, parameters())
    for number, arrays in enumerate([other, gradients(1)] if place == 0 else [gradients(1), other]):
        writer.reply(1, [number], "node", sent, arrays)
    record = Record(tmp_path)
    assert record.learners(1) == [1 - place]
    learners, stacked = record.received(1)
    assert learners == [1 - place]
    np.testing.assert_array_equal(stacked["w"], gradients(1)["w"])
    (said,) = [one.getMessage() for one in caplog.records]
    assert f"replies/000001-000{place}.safetensors: left out, it has other names, shapes or types" in said


def test_without_what_was_sent_the_kind_of_most_learners_counts(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.reply(1, [0], "node", SENT, {"w": np.zeros((1, 7))})
    writer.reply(1, [1, 2], "node", SENT, gradients(2))
    assert Record(tmp_path).received(1)[0] == Record(tmp_path).learners(1) == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_learner_that_is_not_finite_is_left_out_with_a_warning(tmp_path, caplog, value):
    writer = RecordWriter(tmp_path)
    bad = gradients(3)
    bad["b"][1, 2] = value
    writer.reply(1, [4, 7, 9], "node", writer.sent(1, parameters()), bad)
    record = Record(tmp_path)
    learners, stacked = record.received(1)
    assert learners == record.learners(1) == [4, 9]
    for name, rows in gradients(3).items():
        np.testing.assert_array_equal(stacked[name], rows[[0, 2]])
    (said,) = [one.getMessage() for one in caplog.records]
    assert "learner 7 of round 1 is left out, it has entries that are not finite" in said


def test_entries_that_are_not_finite_in_what_was_sent_either_are_no_fault(tmp_path):
    """A causal mask among a network's buffers, for one."""
    writer = RecordWriter(tmp_path)
    mask = np.array([0, -np.inf], "f4")
    sent = writer.sent(1, {**parameters(), "mask": mask})
    writer.reply(1, [4, 7], "node", sent, {**gradients(2), "mask": np.stack([mask, mask])})
    assert Record(tmp_path).received(1)[0] == Record(tmp_path).learners(1) == [4, 7]


def test_a_round_of_which_nothing_is_left_is_an_error(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.reply(1, [4], "node", SENT, {"w": np.full((1, 3), np.nan)})
    for ask in (Record(tmp_path).received, Record(tmp_path).learners):
        with pytest.raises(RecordError, match="no reply of round 1 is finite"):
            ask(1)


@pytest.mark.parametrize("place", ["replies", "replies/000001-0000.safetensors", "sent", SENT])
def test_links_are_not_followed(tmp_path, place):
    path = written(tmp_path / "record")
    shutil.move(path / place, tmp_path / "elsewhere")
    (path / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match=place.replace(".", r"\.")):
        (Record(path).sent if "sent" in place else Record(path).received)(1)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    path = written(tmp_path / "record")
    (path / SENT).unlink()
    os.mkfifo(path / SENT)
    with pytest.raises(RecordError, match="not a plain file"):
        Record(path).sent(1)


def test_files_are_the_librarys_own_format_in_every_type(tmp_path):
    generator = np.random.default_rng(0)
    types = ["?", "i1", "u1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<i8", "<u8", "<f8"]
    arrays = {f"{kind} ü\n": generator.integers(0, 2, (2, 3)).astype(kind) for kind in types}
    arrays |= {"scalars": np.array([1.0, 2.0]), "nothing": np.zeros((2, 0), "f4")}
    arrays |= {"big-endian": np.arange(2, dtype=">f4"), "across": np.arange(6.0).reshape(3, 2).T}
    writer = RecordWriter(tmp_path)
    sent = writer.sent(1, {"zero dimensions": np.float32(3), **arrays})
    reply = writer.reply(1, [1, 2], "node", sent, arrays)
    found, (learners, stacked), ours = (
        load_file(tmp_path / reply),
        Record(tmp_path).received(1),
        Record(tmp_path).sent(1),
    )
    assert learners == [1, 2]
    assert found.keys() == stacked.keys() == arrays.keys()
    assert ours["zero dimensions"] == load_file(tmp_path / sent)["zero dimensions"] == 3
    for name, value in arrays.items():
        for read in (found[name], stacked[name], ours[name]):
            assert (read.dtype, read.shape) == (value.dtype.newbyteorder("<"), value.shape)
            np.testing.assert_array_equal(read, value)


def test_no_record_and_another_version_are_told_apart(tmp_path):
    with pytest.raises(RecordError, match="no record here"):
        Record(tmp_path)
    (tmp_path / "format.json").write_text('{"format": "metaleak-record", "version": 1}')
    with pytest.raises(RecordError, match=r"version 1, this program reads .*3"):
        Record(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    values=numpy_arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    learners=st.permutations(range(20)),
)
def test_every_finite_float32_survives_bit_for_bit(tmp_path_factory, values, learners):
    path = tmp_path_factory.mktemp("round-trip") / "record"
    writer = RecordWriter(path)
    chosen = list(learners)[: len(values)]
    writer.reply(3, chosen, "node", writer.sent(3, {"w": values[0]}), {"w": values})
    writer.flush()
    found, stacked = Record(path).received(3)
    assert load_file(path / "replies" / "000003-0000.safetensors")["w"].tobytes() == values.tobytes()
    order = np.argsort(chosen)
    assert found == sorted(chosen)
    assert stacked["w"].tobytes() == values[order].tobytes()


def test_the_background_writes_the_same_record(tmp_path):
    written(tmp_path / "at-once")
    with BackgroundWriter() as background:
        written(tmp_path / "later", background=background)
    assert content(tmp_path / "later") == content(tmp_path / "at-once")
    assert (tmp_path / "later" / "index" / "000002-0000.parquet").exists()


def test_queued_arrays_are_handed_over_not_copied(tmp_path):
    door = threading.Event()
    with BackgroundWriter() as background:
        writer = RecordWriter(tmp_path, background)
        background.submit(0, door.wait)
        arrays = gradients(1)
        writer.reply(1, [0], "node", SENT, arrays)
        arrays["w"][:] = 5
        door.set()
    assert (Record(tmp_path).received(1)[1]["w"] == 5).all()


def content(path):
    """Return what a record says, apart from when and from whom."""
    record = Record(path)
    entries = [replace(entry, received=0, node="") for entry in record.entries]
    rounds = {
        round: [{name: value.tobytes() for name, value in arrays.items()} for arrays in (record.sent(round), found)]
        for round in record.rounds
        for _, found in [record.received(round)]
    }
    index = pd.read_parquet(path / "index").drop(columns=["received", "node"]).to_dict("records")
    return entries, rounds, index


def third_round(writer, replies=2):
    sent = writer.sent(3, parameters(3))
    for number in range(replies):
        writer.reply(3, [2 * number, 2 * number + 1], "node", sent, gradients(2, 30 + number))


def crashed(path, how):
    """Leave a record as a run that died in its third round would."""
    writer = written_by(RecordWriter(path))
    if how == "before the round":
        return
    third_round(writer, replies=1)
    if how == "before anything of the index":
        for part in (path / "index").iterdir():
            part.unlink()
    elif how == "while a reply was written":
        whole = (path / "replies" / "000003-0000.safetensors").read_bytes()
        (path / "replies" / ".000003-0001.safetensors.0123456789abcdef.part").write_bytes(whole[: len(whole) // 2])
    elif how == "while the index was written":
        (path / "index" / ".000003-0000.parquet.0123456789abcdef.part").write_bytes(b"PAR1")
    elif how == "after the round":
        writer.flush()
    elif how == "after a second index part":
        RecordWriter.resume(path, 3)
        shutil.copy(path / "index" / "000002-0000.parquet", path / "index" / "000002-0001.parquet")


CRASHES = [
    "before the round",
    "before anything of the index",
    "while a reply was written",
    "while the index was written",
    "after the round",
    "after a second index part",
]


@pytest.mark.parametrize("how", CRASHES)
def test_a_resumed_record_is_as_if_nothing_had_happened(tmp_path, how):
    undisturbed = written_by(RecordWriter(tmp_path / "undisturbed"))
    third_round(undisturbed)
    undisturbed.flush()
    crashed(tmp_path / "record", how)
    resumed = RecordWriter.resume(tmp_path / "record", 2)
    assert Record(tmp_path / "record").rounds == [1, 2]
    third_round(resumed)
    resumed.flush()
    assert content(tmp_path / "record") == content(tmp_path / "undisturbed")
    files = [
        sorted(str(f.relative_to(tmp_path / one)) for f in (tmp_path / one).rglob("*"))
        for one in ("record", "undisturbed")
    ]
    assert files[0] == files[1]


def test_a_resumed_round_goes_on_with_its_numbers(tmp_path):
    path = written(tmp_path / "record", flush=False)
    writer = RecordWriter.resume(path, 2)
    writer.reply(2, [9], "node", writer.sent(2, parameters()), gradients(1))
    writer.flush()
    assert Record(path).received(2)[0] == [1, 4, 7, 9]
    assert sorted(pd.read_parquet(path / "index").query("round == 2")["learner"]) == [1, 4, 7, 9]


def test_resuming_before_the_first_round_leaves_an_empty_record(tmp_path):
    RecordWriter.resume(written(tmp_path / "record"), 0)
    assert [file.name for file in (tmp_path / "record").rglob("*") if file.is_file()] == ["format.json"]


def test_what_is_no_record_or_is_damaged_cannot_be_resumed(tmp_path):
    with pytest.raises(RecordError, match="no record here"):
        RecordWriter.resume(tmp_path, 1)
    path = written(tmp_path / "record")
    (path / "replies" / "000001-0000.safetensors").write_bytes(b"no")
    with pytest.raises(RecordError, match="000001-0000"):
        RecordWriter.resume(path, 1)
    assert Record(path).received(2)[0] == [1, 4, 7], "and nothing was removed"


def test_resuming_removes_nothing_through_a_link(tmp_path):
    path = written(tmp_path / "record")
    shutil.move(path / "sent", tmp_path / "elsewhere")
    (path / "sent").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="sent"):
        RecordWriter.resume(path, 0)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, where the user may make one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small file system needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_one_error_and_leaves_what_was_written(small_disk, background):
    path, errors = small_disk / "record", []
    later = BackgroundWriter(limit_bytes=200_000) if background else None
    writer = RecordWriter(path, later)
    sent = writer.sent(1, parameters())
    try:
        for number in range(50):
            writer.reply(1, [number], "node", sent, {"w": np.full((1, 10_000), number, "f8")})
    except OSError as error:
        errors.append(error)
    if later:
        later.close()
    assert [error.errno for error in errors] == [errno.ENOSPC]
    learners, stacked = Record(path).received(1)
    assert learners == list(range(len(learners)))
    assert 8 < len(learners) < 14
    assert (stacked["w"] == np.array(learners)[:, np.newaxis]).all()
    assert not list(path.rglob("*.part"))


def test_a_file_size_limit_is_one_error_and_leaves_what_was_written(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from metaleak.server import RecordWriter
writer = RecordWriter(Path(sys.argv[1]))
sent = writer.sent(1, {"w": np.zeros(3)})
writer.reply(1, [0], "node", sent, {"w": np.zeros((1, 3))})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    writer.reply(1, [1], "node", sent, {"w": np.zeros((1, 30_000))})
except OSError as error:
    print(type(error).__name__, error.errno)
writer.reply(1, [2], "node", sent, {"w": np.zeros((1, 3))})
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "record"], capture_output=True, text=True)
    assert done.stdout.split() == ["OSError", str(errno.EFBIG)], done.stderr
    assert Record(tmp_path / "record").received(1)[0] == [0, 2]
    assert not list((tmp_path / "record").rglob("*.part"))
