"""The curious server: sees everything, changes nothing."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from local_grid import LocalGrid

from metaleak.clients import Federation, Partition, TaskShape, client_app
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.server import CuriousServer, MetaLearner, Record, RecordError, curious_grid

NODES = 4


def ordinary_app():
    """A federated app that knows nothing of us: each node moves the model towards its own constant."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        moved = {
            name: Array((array.numpy() * 0.9 + context.node_id % 7 * 0.1).astype(np.float32))
            for name, array in message.content["arrays"].items()
        }
        content = {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 3})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"m": MetricRecord({"num-examples": 3, "loss": 1.0})}), reply_to=message)

    return app


def start_arrays():
    generator = np.random.default_rng(0)
    return ArrayRecord({"w": Array(generator.normal(size=(5, 3)).astype(np.float32)), "b": Array(np.zeros(3, "f4"))})


def final(strategy, app=None, arrays=None):
    result = strategy.start(LocalGrid(app or ordinary_app(), NODES), arrays or start_arrays(), num_rounds=3)
    return {name: array.numpy().tobytes() for name, array in result.arrays.items()}


@pytest.mark.parametrize("plain", [FedAvg, FedAdam])
def test_wrapping_a_flower_strategy_changes_no_bit(tmp_path, plain):
    assert final(CuriousServer(plain(), tmp_path / "record")) == final(plain())


def test_wrapping_our_strategy_changes_no_bit(tmp_path):
    federation = Federation(
        seed=0,
        data=Digits(),
        task=TaskShape(ways=2),
        partition=Partition(learners=6),
        model=MLP(hidden=(8,)),
        rule=MAML(),
    )
    initial = ArrayRecord({name: Array(value.numpy()) for name, value in federation.initial_parameters().items()})
    app = client_app(federation)
    wrapped = CuriousServer(MetaLearner(6, chunk=2), tmp_path / "record")
    assert final(wrapped, app, initial) == final(MetaLearner(6, chunk=2), app, initial)
    record = Record(tmp_path / "record")
    learners, gradients = record.gradients(3)
    assert learners == list(range(6))
    chunks = [federation.learner(number) for number in range(6)]
    sent = {name: _tensor(value) for name, value in record.sent(3).items()}
    for number, learner in enumerate(chunks):
        mine, _ = learner.meta_gradient(sent, 3)
        np.testing.assert_allclose(gradients["head.weight"][number], mine["head.weight"], rtol=1e-4, atol=1e-7)


def _tensor(value):
    import torch

    return torch.from_numpy(value)


def test_every_training_reply_is_recorded_with_what_was_sent(tmp_path):
    grid = LocalGrid(ordinary_app(), NODES)
    CuriousServer(FedAvg(), tmp_path / "record").start(grid, start_arrays(), num_rounds=2)
    record = Record(tmp_path / "record")
    assert record.rounds == [1, 2]
    replies = [m for m in grid.seen if m.metadata.reply_to_message_id and "arrays" in m.content]
    assert len(record.entries) == len(replies) == 2 * NODES
    np.testing.assert_array_equal(record.sent(1)["w"], start_arrays()["w"].numpy())
    by_node = {entry.node: entry for entry in record.entries if entry.round == 1}
    learners, gradients = record.gradients(1)
    for reply in replies[:NODES]:
        entry = by_node[str(reply.metadata.src_node_id)]
        row = learners.index(entry.learner)
        np.testing.assert_array_equal(gradients["w"][row], reply.content["arrays"]["w"].numpy())
    assert len(list((tmp_path / "record" / "sent").iterdir())) == 2, "the same parameters are written once"


def test_a_reply_is_on_disk_before_the_strategy_sees_it(tmp_path):
    class Asking(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.append(len(Record(tmp_path / "record").gradients(server_round)[0]))
            return super().aggregate_train(server_round, replies)

    seen = []
    CuriousServer(Asking(), tmp_path / "record").start(LocalGrid(ordinary_app(), NODES), start_arrays(), num_rounds=2)
    assert seen == [NODES, NODES]


def test_an_own_loop_uses_the_other_door(tmp_path):
    grid, complete = curious_grid(LocalGrid(ordinary_app(), NODES), tmp_path / "record")
    for round in (1, 2):
        content = RecordDict({"arrays": start_arrays(), "config": ConfigRecord({"server-round": round})})
        messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
        assert len(list(grid.send_and_receive(messages))) == NODES
    complete()
    assert Record(tmp_path / "record").rounds == [1, 2]


@pytest.mark.parametrize("later", [1, 2, 5])
def test_a_second_answer_is_not_recorded_however_late_it_comes(tmp_path, later):
    app = ClientApp()

    @app.train()
    def train(message, context):
        stacked = {name: Array(array.numpy()[None]) for name, array in message.content["arrays"].items()}
        content = {"arrays": ArrayRecord(stacked), "config": ConfigRecord({"learner-ids": [7]})}
        return Message(RecordDict(content), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")

    def asked(round):
        config = ConfigRecord({"server-round": round, "learner-ids": [7]})
        content = RecordDict({"arrays": start_arrays(), "config": config})
        return list(grid.push_messages([Message(content, grid.get_node_ids()[0], MessageType.TRAIN)]))

    # Asked twice, for the first message seemed lost.
    first, second = asked(1), asked(1)
    assert len(list(grid.pull_messages(first))) == 1
    for round in range(2, 2 + later):
        assert len(list(grid.pull_messages(asked(round)))) == 1
    assert len(list(grid.pull_messages(second))) == 1
    complete()
    record = Record(tmp_path / "record")
    assert [record.gradients(round)[0] for round in record.rounds] == [[7]] * (1 + later)


def test_error_replies_pass_and_are_not_recorded(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise RuntimeError("no")

    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    content = RecordDict({"arrays": start_arrays(), "config": ConfigRecord({})})
    replies = list(grid.send_and_receive([Message(content, grid.get_node_ids()[0], MessageType.TRAIN)]))
    complete()
    assert replies[0].has_error()
    assert Record(tmp_path / "record").entries == []


def test_two_array_records_are_told_apart_and_scalars_stay_scalars(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        both = {"arrays": ArrayRecord({"w": Array(np.zeros((), "f4"))}), "control": message.content["arrays"]}
        return Message(RecordDict(both), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    sent = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones((), "f4"))})})
    list(grid.send_and_receive([Message(sent, grid.get_node_ids()[0], MessageType.TRAIN)]))
    complete()
    record = Record(tmp_path / "record")
    assert record.sent(1)["w"].shape == ()
    gradients = record.gradients(1)[1]
    assert {name: value.tolist() for name, value in gradients.items()} == {"arrays/w": [0.0], "control/w": [1.0]}


def test_a_reply_that_is_not_stacked_reaches_the_strategy_all_the_same(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        wrong = {"arrays": message.content["arrays"], "config": ConfigRecord({"learner-ids": [1, 2]})}
        return Message(RecordDict(wrong), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    content = RecordDict({"arrays": start_arrays()})
    replies = list(grid.send_and_receive([Message(content, grid.get_node_ids()[0], MessageType.TRAIN)]))
    complete()
    assert len(replies) == 1
    assert Record(tmp_path / "record").entries == []


def test_a_way_round_its_own_start_is_refused_not_ignored(tmp_path):
    curious = CuriousServer(FedAvg(), tmp_path / "record")
    grid = LocalGrid(ordinary_app(), NODES)
    with pytest.raises(RuntimeError, match="curious_grid"):
        curious.configure_train(1, start_arrays(), ConfigRecord({}), grid)


def test_an_existing_record_is_an_error_before_anything_runs(tmp_path):
    CuriousServer(FedAvg(), tmp_path / "record")
    with pytest.raises(RecordError, match="never overwritten"):
        CuriousServer(FedAvg(), tmp_path / "record")


def test_only_the_first_rounds_are_recorded_when_asked(tmp_path):
    strategy = CuriousServer(FedAvg(), tmp_path / "record", rounds=2)
    assert final(strategy) == final(FedAvg())
    assert Record(tmp_path / "record").rounds == [1, 2]
