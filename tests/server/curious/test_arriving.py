"""Replies that arrive as files: the bits and the record of replies by message, and nothing is believed unchecked."""

import dataclasses
import errno
import gc
import os

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from local_grid import LocalGrid

from metaleak.clients import Federation, Partition, TaskShape, client_app
from metaleak.clients.datasets import Digits
from metaleak.clients.faults import Faults
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.clients.wire.reply_file import ReplyFile
from metaleak.clients.wire.reply_layout import FREE, IN_FILE, head_bytes
from metaleak.server import ArrivingReplies, CuriousServer, MetaLearner, Record, RecordWriter, WatchedGrid
from metaleak.server.curious import arriving as arriving_module
from metaleak.server.record import writer as writer_module
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.whole_file import write_whole

LEARNERS, ROUNDS = 12, 2


@pytest.fixture(scope="module")
def federation():
    return Federation(
        seed=3,
        data=Digits(),
        task=TaskShape(ways=3),
        partition=Partition(learners=LEARNERS),
        model=MLP(hidden=(8,)),
        rule=MAML(),
    )


def trained(federation, folder, *, arriving=None, spoil=None, reports=None):
    """Train with a recorder; nodes lay their replies down in the folder that is `arriving`, if there is one."""
    app = client_app(federation, "cpu", arriving and arriving.folder)
    grid = WatchedGrid(LocalGrid(app, nodes=2, spoil=spoil), received=arriving and arriving.take)
    on_round = reports.append if reports is not None else None
    learning = MetaLearner(LEARNERS, seed=3, chunk=4, shares_per_node=8, on_round=on_round)
    arrays = ArrayRecord({name: Array(value.numpy()) for name, value in federation.initial_parameters().items()})
    result = CuriousServer(learning, folder, must_record=True).start(grid, arrays, num_rounds=ROUNDS)
    return {name: array.numpy() for name, array in result.arrays.items()}


def same(left, right):
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("faults", [Faults(), Faults(dropout=0.3, failure=0.2)])
def test_bits_and_record_are_those_of_replies_by_message(federation, tmp_path, faults):
    federation = dataclasses.replace(federation, faults=faults)
    sent = trained(federation, tmp_path / "sent")
    handles = []

    def look(reply):
        handles.append({array.stype for array in reply.content["arrays"].values()})
        return reply

    with ArrivingReplies(tmp_path / "arriving") as arriving:
        found = trained(federation, tmp_path / "arrived", arriving=arriving, spoil=look)
        gc.collect()
        assert all(name.startswith(FREE) for name in os.listdir(arriving.folder))
    assert {IN_FILE} in handles
    assert not arriving.folder.exists()
    assert same(sent, found)
    by_message, by_file = Record(tmp_path / "sent"), Record(tmp_path / "arrived")
    for round in range(1, ROUNDS + 1):
        (learners, arrays), (others, theirs) = by_message.received(round), by_file.received(round)
        assert learners == others
        assert same(arrays, theirs)
        assert by_message.metrics(round) == by_file.metrics(round)


def test_a_small_recorded_file_is_the_one_that_arrived(federation, tmp_path):
    inodes = set()

    def look(reply):
        for array in reply.content["arrays"].values():
            inodes.add(os.stat(tmp_path / "arriving" / bytes(array.data).decode()).st_ino)
        return reply

    with ArrivingReplies(tmp_path / "arriving") as arriving:
        trained(federation, tmp_path / "record", arriving=arriving, spoil=look)
    recorded = {file.stat().st_ino for file in (tmp_path / "record" / "replies").iterdir()}
    assert recorded == inodes


def test_an_array_that_arrived_is_flowers_array_to_everybody(federation, tmp_path):
    with ArrivingReplies(tmp_path / "arriving") as arriving:
        seen = []
        grid = WatchedGrid(
            LocalGrid(client_app(federation, "cpu", arriving.folder), nodes=1),
            received=lambda reply: (arriving.take(reply), seen.append(reply.content["arrays"])),
        )
        start = ArrayRecord({name: Array(value.numpy()) for name, value in federation.initial_parameters().items()})
        MetaLearner(LEARNERS, seed=3, chunk=4).start(grid, start, num_rounds=1)
        for array in seen[0].values():
            np.testing.assert_array_equal(array.numpy(), array.mapped)
            np.testing.assert_array_equal(Array(array.numpy()).numpy(), array.mapped)
        del seen[:], array, grid
        gc.collect()
        assert all(name.startswith(FREE) for name in os.listdir(arriving.folder))


def handed_over(arriving, value, rows=3):
    """Return a message with `rows` rows of 2 MB, all entries `value`, that a node wrote into a file."""
    file = ReplyFile(arriving.folder, rows, {"w": torch.zeros(500_000)})
    file.append({"w": torch.full((rows, 500_000), value)})
    first = Message(RecordDict(), dst_node_id=1, message_type="train")
    reply = Message(RecordDict({"arrays": file.record()}), reply_to=first)
    arriving.take(reply)
    return reply


def inode(reply):
    return os.stat(reply.content["arrays"]["w"].file.path).st_ino


def test_a_file_is_used_again_once_no_view_of_its_numbers_is_left(tmp_path):
    with ArrivingReplies(tmp_path / "arriving") as arriving:
        first = handed_over(arriving, 1.0)
        number, view = inode(first), first.content["arrays"]["w"].mapped[1]
        del first
        gc.collect()
        second = handed_over(arriving, 2.0, rows=2)
        assert inode(second) != number
        assert (view == 1).all()
        del view
        gc.collect()
        # More rows, and fewer: the file gets the size of the new reply.
        for rows, value in ((4, 3.0), (1, 4.0)):
            third = handed_over(arriving, value, rows)
            assert inode(third) == number
            np.testing.assert_array_equal(third.content["arrays"]["w"].numpy(), np.full((rows, 500_000), value, "f4"))
            del third
            gc.collect()


def test_a_bounded_number_of_files_waits_for_the_next_replies(tmp_path):
    with ArrivingReplies(tmp_path / "arriving") as arriving:
        replies = [handed_over(arriving, float(number), rows=1) for number in range(20)]
        assert len({inode(reply) for reply in replies}) == 20
        del replies
        gc.collect()
        assert len(os.listdir(arriving.folder)) == 16


def test_no_two_replies_share_a_file(tmp_path):
    with ArrivingReplies(tmp_path / "arriving") as arriving:
        first = handed_over(arriving, 1.0)
        name = first.content["arrays"]["w"].file.path.name.removeprefix("taken-")
        second = Message(first.content, reply_to=Message(RecordDict(), dst_node_id=1, message_type="train"))
        second.content["arrays"] = ArrayRecord({"w": Array("float32", (3, 500_000), IN_FILE, name.encode())})
        arriving.take(second)
        assert second.content["arrays"]["w"].stype == IN_FILE


def without_direct_io(*_):
    raise OSError(errno.EINVAL, "Invalid argument")


def with_a_full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [write_whole, without_direct_io, with_a_full_disk])
def test_a_large_reply_is_copied_where_possible_and_else_moved(tmp_path, monkeypatch, write):
    # Not every file system that tests may run on has direct I/O.
    monkeypatch.setattr(arriving_module, "write_past_cache", lambda path, memory: write(path, memory[:]))
    values = np.arange(3 * 500_000, dtype="f4").reshape(3, 500_000)
    with ArrivingReplies(tmp_path / "arriving") as arriving, BackgroundWriter() as background:
        reply = handed_over(arriving, 0.0)
        array = reply.content["arrays"]["w"]
        with open(array.file.path, "r+b") as file:
            file.seek(head_bytes(3, ["w"]))
            file.write(values.tobytes())
        number = inode(reply)
        writer = RecordWriter(tmp_path / "record", background)
        sent = writer.sent(1, {"w": values[0]})
        writer.reply(1, [0, 1, 2], "node", sent, {"w": array.mapped}, file=array.file)
        background.drain()
        (recorded,) = (tmp_path / "record" / "replies").iterdir()
        copied = recorded.stat().st_ino != number
        assert copied == (write is write_whole)
        del reply, array
        gc.collect()
        assert [name.startswith(FREE) for name in os.listdir(arriving.folder)] == [True] * copied
    np.testing.assert_array_equal(Record(tmp_path / "record").received(1)[1]["w"], values)


def test_large_replies_are_moved_for_a_while_after_a_slow_copy(tmp_path, monkeypatch):
    values = np.zeros(500_000, "f4")
    clock = iter([0.0, 1.0, 1.0, 1.001])
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(arriving_module, "write_past_cache", lambda path, memory: write_whole(path, memory[:]))
    with ArrivingReplies(tmp_path / "arriving") as arriving, BackgroundWriter() as background:
        writer = RecordWriter(tmp_path / "record", background)
        sent = writer.sent(1, {"w": values})
        moved = []
        for learner in range(18):
            reply = handed_over(arriving, 1.0, rows=1)
            array, number = reply.content["arrays"]["w"], inode(reply)
            name = writer.reply(1, [learner], "node", sent, {"w": array.mapped}, file=array.file)
            background.drain()
            moved.append((writer.path / name).stat().st_ino == number)
            del reply, array
            gc.collect()
    assert moved == [False] + [True] * 16 + [False]


def test_without_the_folder_replies_come_by_message(federation, tmp_path):
    gone = ArrivingReplies(tmp_path / "gone")
    assert same(trained(federation, tmp_path / "one"), trained(federation, tmp_path / "other", arriving=gone))


def name_of(reply):
    return bytes(reply.content["arrays"]["head.bias"].data).decode()


def renamed(reply, name, folder):
    for key, array in reply.content["arrays"].items():
        reply.content["arrays"][key] = Array(array.dtype, array.shape, IN_FILE, name.encode())


def outside(reply, folder):
    (folder.parent / "secret").write_bytes((folder / name_of(reply)).read_bytes())
    renamed(reply, "../secret", folder)


def a_link(reply, folder):
    link = folder / ("0" * 32)
    link.unlink(missing_ok=True)
    link.symlink_to(folder / name_of(reply))
    renamed(reply, "0" * 32, folder)


def not_there(reply, folder):
    renamed(reply, "f" * 32, folder)


def not_a_name(reply, folder):
    renamed(reply, "\N{SNOWMAN}", folder)


def cut(reply, folder):
    os.truncate(folder / name_of(reply), 5000)


def larger_than_its_file(reply, folder):
    array = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array(array.dtype, (array.shape[0], 10**15), IN_FILE, bytes(array.data))


def of_objects(reply, folder):
    array = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array("object", array.shape, IN_FILE, bytes(array.data))


def of_an_unknown_type(reply, folder):
    array = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array("bfloat16", array.shape, IN_FILE, bytes(array.data))


def without_rows(reply, folder):
    array = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array(array.dtype, (), IN_FILE, bytes(array.data))


def in_part(reply, folder):
    array = reply.content["arrays"]["head.bias"]
    reply.content["arrays"]["head.bias"] = Array(np.zeros(array.shape, "f4"))


@pytest.mark.parametrize(
    "change",
    [
        outside,
        a_link,
        not_there,
        not_a_name,
        cut,
        larger_than_its_file,
        of_objects,
        of_an_unknown_type,
        without_rows,
        in_part,
    ],
)
def test_a_handle_that_stands_for_no_file_of_its_size_is_refused(federation, tmp_path, change):
    reports = []

    def spoil(reply):
        if 0 in reply.content["config"]["learner-ids"]:
            change(reply, tmp_path / "arriving")
        return reply

    with ArrivingReplies(tmp_path / "arriving") as arriving:
        result = trained(federation, tmp_path / "record", arriving=arriving, spoil=spoil, reports=reports)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)] * ROUNDS
    assert Record(tmp_path / "record").learners(1) == list(range(4, LEARNERS))
    assert all(np.isfinite(value).all() for value in result.values())


def test_a_head_that_no_reader_would_take_is_written_by_itself(tmp_path):
    """Spaces count as header, of which a reader takes a limited number of bytes."""

    class Large:
        head = 2**21

        def move(self, to, lead):
            raise AssertionError("moved")

    writer = RecordWriter(tmp_path / "record")
    sent = writer.sent(1, {"w": np.zeros(2, "f4")})
    writer.reply(1, [0], "node", sent, {"w": np.ones((1, 2), "f4")}, file=Large())
    assert Record(tmp_path / "record").received(1)[1]["w"].tolist() == [[1, 1]]


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "arriving").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a link, which is not followed"), ArrivingReplies(tmp_path / "arriving"):
        pass


def test_handles_are_refused_where_nothing_arrives(federation, tmp_path):
    """A node of another machine may say what it wants: only the grid's door turns a handle into numbers."""
    reports = []

    def spoil(reply):
        if 0 in reply.content["config"]["learner-ids"]:
            renamed(reply, "0" * 32, tmp_path)
        return reply

    trained(federation, tmp_path / "record", spoil=spoil, reports=reports)
    assert [report.refused for report in reports] == [4] * ROUNDS
