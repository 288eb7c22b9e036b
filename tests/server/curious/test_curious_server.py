"""The curious server: sees everything, changes nothing."""

import errno

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server import ServerConfig
from flwr.server.compat import LegacyContext
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp.strategy import FedAdam, FedAvg
from local_grid import LocalGrid

from metaleak.clients import Federation, Partition, TaskShape, client_app
from metaleak.clients.datasets import Digits
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML
from metaleak.server import CuriousServer, MetaLearner, Record, RecordError, RecordWriter, curious_grid
from metaleak.server.curious.recorder import Recorder
from metaleak.server.record.writer import new_record

NODES = 4


def ordinary_app():
    """A federated app that knows nothing of us: each node moves the model toward its own constant."""
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
    learners, gradients = record.received(3)
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
    learners, gradients = record.received(1)
    for reply in replies[:NODES]:
        entry = by_node[str(reply.metadata.src_node_id)]
        row = learners.index(entry.learner)
        np.testing.assert_array_equal(gradients["w"][row], reply.content["arrays"]["w"].numpy())
    assert len(list((tmp_path / "record" / "sent").iterdir())) == 2, "the same parameters are written once"


def test_a_reply_is_on_disk_before_the_strategy_sees_it(tmp_path):
    class Asking(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.append(len(Record(tmp_path / "record").received(server_round)[0]))
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
    assert [record.received(round)[0] for round in record.rounds] == [[7]] * (1 + later)


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
    gradients = record.received(1)[1]
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


def test_its_own_methods_and_attributes_stay_reachable(tmp_path):
    class Own(FedAvg):
        def best_round(self):
            return 7

    plain = Own()
    curious = CuriousServer(plain, tmp_path / "record")
    assert curious.best_round() == 7
    assert curious.weighted_by_key == "num-examples"
    curious.fraction_train = 0.5
    assert plain.fraction_train == curious.fraction_train == 0.5
    with pytest.raises(AttributeError, match="nothing"):
        _ = curious.nothing


def test_a_record_says_what_its_replies_hold(tmp_path):
    final(CuriousServer(FedAvg(), tmp_path / "record", holds="weights"))
    record = Record(tmp_path / "record")
    assert (record.holds, record.message_type) == ("weights", "train")
    final(CuriousServer(FedAvg(), tmp_path / "unknown"))
    assert Record(tmp_path / "unknown").holds is None


def test_a_writer_and_its_server_agree_on_what_is_written(tmp_path):
    writer = RecordWriter(tmp_path / "record", holds="gradient")
    with pytest.raises(ValueError, match="holds is 'weights', the writer's 'gradient'"):
        CuriousServer(FedAvg(), writer, holds="weights")
    with pytest.raises(ValueError, match="message_type is 'evaluate', the writer's 'train'"):
        CuriousServer(FedAvg(), writer, message_type="evaluate")


def test_the_record_is_made_with_the_first_message_and_beside_one_that_is_there(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["record", "record-2", "record-3"], start=1):
        curious = CuriousServer(FedAvg(), "runs/record")
        assert curious.record is None
        assert len(list(tmp_path.glob("runs/*"))) == number - 1
        with caplog.at_level("INFO", logger="flwr"):
            final(curious)
        assert f"Recording what passes in {tmp_path}/runs/{name}" in caplog.text
        assert f"12 replies are recorded in {tmp_path}/runs/{name}" in caplog.text
        assert Record(tmp_path / "runs" / name).rounds == [1, 2, 3]


def test_a_second_start_of_one_strategy_has_a_record_of_its_own(tmp_path):
    curious = CuriousServer(FedAvg(), tmp_path / "record")
    final(curious)
    final(curious)
    assert [len(Record(tmp_path / name).entries) for name in ("record", "record-2")] == [3 * NODES] * 2


def test_two_at_once_never_share_a_record(tmp_path):
    writers = [new_record(tmp_path / "record") for _ in range(3)]
    assert [writer.path.name for writer in writers] == ["record", "record-2", "record-3"]
    with pytest.raises(RecordError, match="never overwritten"):
        RecordWriter(tmp_path / "record")


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"rounds": -5}, ValueError, "rounds must be a whole number >= 1"),
        ({"rounds": 0}, ValueError, "rounds must be"),
        ({"rounds": True}, ValueError, "rounds must be"),
        ({"strategy": FedAvg}, TypeError, r"an instance such as FedAvg\(\), got the class"),
        ({"strategy": object()}, TypeError, "curious_grid"),
        ({"largest_reply": 0}, ValueError, "largest_reply must be"),
        ({"message_type": ""}, ValueError, "message_type must be"),
        ({"holds": "gradients"}, ValueError, "holds must be one of 'gradient', 'delta', 'weights', or None"),
        ({"identity": ""}, ValueError, "identity must be a name such as 'partition-id'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(tmp_path, wrong, error, says):
    with pytest.raises(error, match=says) as caught:
        CuriousServer(**{"strategy": FedAvg(), "record": tmp_path / "record", **wrong})
    assert "\n" not in str(caught.value)


def replying(change):
    """An app whose node `node` sends what `change(node, arrays)` makes of the arrays that it gets."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        changed = {name: Array(np.asarray(value)) for name, value in change(context.node_id - 10_000, arrays).items()}
        content = {"arrays": ArrayRecord(changed), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return app


def rounds_of(grid, rounds=2, nodes=None, declared=True, arrays=None, **more):
    """An own loop: ask every node, take the answers."""
    for round in range(1, rounds + 1):
        config = ConfigRecord({"server-round": round} if declared else {})
        content = RecordDict({"arrays": arrays or start_arrays(), "config": config})
        asked = grid.get_node_ids() if nodes is None else nodes[round - 1]
        yield list(grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in asked], **more))


BAD = {
    "double": lambda a: {**a, "w": a["w"].astype(np.float64)},
    "half": lambda a: {name: value.astype(np.float16) for name, value in a.items()},
    "whole": lambda a: {**a, "b": a["b"].astype(np.int32)},
    "another shape": lambda a: {**a, "w": a["w"][:2]},
    "a name less": lambda a: {"w": a["w"]},
    "a name more": lambda a: {**a, "more": a["w"]},
    "not a number": lambda a: {**a, "b": a["b"] * np.nan},
    "infinite": lambda a: {**a, "w": a["w"] + np.inf},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, NODES - 1], ids=["last", "first"])
def test_one_nodes_reply_never_makes_a_foreign_round_unreadable(tmp_path, caplog, bad, place):
    """Whether it is the first to arrive or the last (the nodes answer in descending order)."""
    app = replying(lambda node, arrays: BAD[bad](arrays) if node == place else arrays)
    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    assert [len(replies) for replies in rounds_of(grid)] == [NODES] * 2
    complete()
    record = Record(tmp_path / "record")
    for round in (1, 2):
        learners, gradients = record.received(round)
        nodes = {entry.node for entry in record.entries if entry.round == round and entry.learner in learners}
        assert nodes == {str(10_000 + node) for node in range(NODES) if node != place}
        np.testing.assert_array_equal(gradients["w"], np.stack([start_arrays()["w"].numpy()] * (NODES - 1)))
    assert any(
        f"node {10_000 + place}" in one.getMessage() or "left out" in one.getMessage() for one in caplog.records
    )


def test_an_app_whose_replies_are_of_another_kind_than_what_it_sends_is_recorded(tmp_path):
    app = replying(lambda node, arrays: {"step": arrays["w"].astype(np.float64), "seen": np.arange(3) + node})
    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    list(rounds_of(grid))
    complete()
    learners, gradients = Record(tmp_path / "record").received(2)
    assert len(learners) == NODES
    assert {name: value.dtype.name for name, value in gradients.items()} == {"step": "float64", "seen": "int64"}


def stranger_first(stranger):
    """Nodes answer in descending order: the last one, first of all, by what `stranger` makes of its arrays."""
    return replying(lambda node, arrays: stranger(arrays) if node == NODES - 1 else {"embedding": arrays["w"] + node})


def test_the_first_reply_of_a_round_does_not_decide_for_the_others(tmp_path):
    grid, complete = curious_grid(LocalGrid(stranger_first(lambda arrays: {"x": arrays["w"]}), NODES), tmp_path / "r")
    list(rounds_of(grid, rounds=1))
    complete()
    learners, gradients = Record(tmp_path / "r").received(1)
    assert len(learners) == NODES - 1
    assert list(gradients) == ["embedding"]


def naming(numbers):
    """An app whose last node says that it answers for the learners `numbers`."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        w = message.content["arrays"]["w"].numpy()
        if context.node_id - 10_000 < NODES - 1:
            return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)})}), reply_to=message)
        stacked = ArrayRecord({"w": Array(np.stack([w] * len(numbers)))})
        config = ConfigRecord({"learner-ids": list(numbers)})
        return Message(RecordDict({"arrays": stacked, "config": config}), reply_to=message)

    return app


def test_nobody_takes_another_nodes_place_by_naming_it(tmp_path):
    grid, complete = curious_grid(LocalGrid(naming(range(200)), NODES), tmp_path / "first")
    list(rounds_of(grid, rounds=1))
    complete()
    learners, _ = Record(tmp_path / "first").received(1)
    assert learners == [*range(200), 200, 201, 202], "the others have numbers that nobody has named"
    grid, complete = curious_grid(LocalGrid(naming([0]), NODES), tmp_path / "later")
    list(rounds_of(grid, rounds=1, nodes=[[10_000]]))
    list(rounds_of(grid, rounds=2, nodes=[[], [10_000, 10_000 + NODES - 1]]))
    complete()
    nodes = {entry.node for entry in Record(tmp_path / "later").entries}
    assert nodes == {"10000"}, "0 stands for the first node"


def test_the_more_learners_a_reply_names_the_larger_it_may_not_be(tmp_path, caplog):
    grid, complete = curious_grid(
        LocalGrid(naming(range(400)), NODES),
        tmp_path / "record",
        largest_reply=2 * start_arrays()["w"].numpy().nbytes,
    )
    list(rounds_of(grid, rounds=1))
    complete()
    assert "larger than 16 times what was sent" in caplog.text
    assert len(Record(tmp_path / "record").received(1)[0]) == NODES - 1


def test_all_that_passes_and_is_not_recorded_is_counted(tmp_path, caplog):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_id == 10_000:
            raise RuntimeError("out of battery")
        return Message(RecordDict({"m": MetricRecord({"loss": 1.0})}), reply_to=message)

    strategy = CuriousServer(FedAvg(), tmp_path / "record")
    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "own")
    list(rounds_of(grid, rounds=1))
    complete()
    assert "nothing is recorded: 4 messages of type 'train' went out; not recorded: 1 errors, 3 without arrays" in (
        caplog.text
    )
    assert strategy.record is None
    final(strategy)
    assert strategy.record == tmp_path / "record", "also when it is complete"


def test_a_mask_that_is_infinite_by_design_hides_nobody(tmp_path):
    sent = ArrayRecord({"w": Array(np.zeros(2, "f4")), "mask": Array(np.array([0, -np.inf], "f4"))})
    grid, complete = curious_grid(LocalGrid(replying(lambda node, arrays: arrays), NODES), tmp_path / "record")
    list(rounds_of(grid, arrays=sent))
    complete()
    assert len(Record(tmp_path / "record").received(1)[0]) == NODES


def test_replies_that_grow_are_recorded_up_to_a_limit(tmp_path, caplog):
    """Trees as bytes: nothing goes out at first, and each node's are of another length."""
    app = replying(lambda node, arrays: {"0": np.full(20_000 + node, node, np.uint8)})
    empty = ArrayRecord({"0": Array(np.empty(0, np.uint8))})
    for name, settings in (("record", {}), ("little", {"largest_reply": 20_000})):
        grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / name, **settings)
        list(rounds_of(grid, rounds=1, arrays=empty))
        complete()
    assert len(Record(tmp_path / "record").entries) == NODES
    assert "larger than 16 times what was sent" in caplog.text
    assert "nothing is recorded: 4 messages of type 'train' went out" in caplog.text
    assert not (tmp_path / "little").exists() or Record(tmp_path / "little").entries == []


def test_flowers_classic_workflow_is_recorded(tmp_path, caplog):
    """There the arrays say neither their type nor their shape; their bytes do."""

    class Client(NumPyClient):
        def get_parameters(self, config):
            return [np.ones((3, 4), "f4"), np.array(7)]

        def fit(self, parameters, config):
            return [parameters[0] + 1, parameters[1]], 5, {}

        def evaluate(self, parameters, config):
            return 0.5, 5, {}

    app = ClientApp(client_fn=lambda context: Client().to_client())
    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    workflow = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=ClassicFedAvg())
    with caplog.at_level("INFO", logger="flwr"):
        DefaultWorkflow()(grid, workflow)
        complete()
    record = Record(tmp_path / "record")
    assert record.rounds == [1, 2]
    learners, gradients = record.received(2)
    assert learners == list(range(NODES))
    assert record.sent(2)["0"].shape == (3, 4)
    assert (gradients["0"] == np.full((NODES, 3, 4), 3, "f4")).all()
    assert record.received(1)[1]["1"].tolist() == [7] * NODES
    assert len(list((tmp_path / "record" / "sent").iterdir())) == 2, "what all nodes get is written once a round"
    assert "8 replies are recorded" in caplog.text
    assert "not recorded: 1 of type get_parameters" in caplog.text


def embedding_app():
    app = ClientApp()

    @app.query("embeddings")
    def embed(message, context):
        array = Array(np.full((2, 3), context.node_id % 10, "f4"))
        return Message(RecordDict({"e": ArrayRecord({"e": array})}), reply_to=message)

    return app


def ask_for_embeddings(grid):
    messages = [Message(RecordDict(), node, "query.embeddings") for node in grid.get_node_ids()]
    return list(grid.send_and_receive(messages))


def test_messages_of_another_type_are_recorded_when_asked_for(tmp_path):
    grid, complete = curious_grid(
        LocalGrid(embedding_app(), NODES), tmp_path / "record", message_type="query.embeddings"
    )
    ask_for_embeddings(grid)
    ask_for_embeddings(grid)
    complete()
    record = Record(tmp_path / "record")
    assert record.rounds == [1, 2]
    assert record.received(2)[1]["e"].shape == (NODES, 2, 3)
    assert record.sent(1) == {}


def test_messages_of_another_type_are_otherwise_counted_and_no_record_is_made(tmp_path, caplog):
    grid, complete = curious_grid(LocalGrid(embedding_app(), NODES), tmp_path / "record")
    assert len(ask_for_embeddings(grid)) == NODES
    complete()
    assert "nothing is recorded: 0 messages of type 'train' went out" in caplog.text
    assert f"{NODES} of type query.embeddings" in caplog.text
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize("where", ["sent", "reply", "flush"])
def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch, caplog, where):
    def full(self, *rest, **named):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    expected = final(FedAvg())
    monkeypatch.setattr(RecordWriter, where, full)
    assert final(CuriousServer(FedAvg(), tmp_path / "record")) == expected
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("recording has stopped, the training goes on: OSError: [Errno 28] No space left")


def test_whoever_must_record_is_told_of_a_full_disk(tmp_path, monkeypatch):
    def full(self, *rest, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "reply", full)
    with pytest.raises(OSError, match="No space"):
        final(CuriousServer(FedAvg(), tmp_path / "record", must_record=True))


def test_arrays_that_cannot_be_read_pass_and_are_not_recorded(tmp_path, caplog):
    strange = ArrayRecord({"w": Array(dtype="", shape=(), stype="some.format", data=b"123")})
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, NODES), tmp_path / "record")
    assert [len(replies) for replies in rounds_of(grid, arrays=strange)] == [NODES] * 2
    complete()
    assert "round 1: a message and its answer are not recorded: w is serialized as 'some.format'" in caplog.text
    assert "8 left out" in caplog.text


class Forgetful(LocalGrid):
    """Its first node never answers."""

    def pull_messages(self, message_ids):
        return [reply for reply in super().pull_messages(message_ids) if reply.metadata.src_node_id != 10_000]


def test_rounds_without_a_number_are_told_apart_though_a_node_never_answers(tmp_path):
    grid, complete = curious_grid(Forgetful(ordinary_app(), NODES), tmp_path / "record")
    list(rounds_of(grid, rounds=3, declared=False, timeout=0.1))
    complete()
    record = Record(tmp_path / "record")
    assert record.rounds == [1, 2, 3]
    assert [len(record.received(round)[0]) for round in record.rounds] == [NODES - 1] * 3


def test_messages_that_are_never_answered_are_forgotten(tmp_path):
    recorder = Recorder(tmp_path / "record")
    grid = recorder.watch(Forgetful(ordinary_app(), 1))
    list(rounds_of(grid, rounds=200, timeout=0))
    assert 40 < len(recorder._open) < 60
    assert 40 < len(recorder._rounds) < 60


def test_a_loop_that_begins_again_spoils_no_round(tmp_path, caplog):
    grid, complete = curious_grid(LocalGrid(ordinary_app(), NODES), tmp_path / "record")
    for _ in range(2):
        list(rounds_of(grid, rounds=4))
    complete()
    record = Record(tmp_path / "record")
    assert [len(record.received(round)[0]) for round in (1, 2, 3, 4)] == [NODES] * 4
    assert "round 1: is asked again after later ones, which is not recorded" in caplog.text


def test_rounds_that_are_counted_from_zero_stay_apart(tmp_path):
    grid, complete = curious_grid(LocalGrid(ordinary_app(), NODES), tmp_path / "record")
    for round in (0, 1):
        content = RecordDict({"arrays": start_arrays(), "config": ConfigRecord({"server-round": round})})
        list(grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]))
    complete()
    record = Record(tmp_path / "record")
    assert [(round, len(record.received(round)[0])) for round in record.rounds] == [(0, NODES), (1, NODES)]


def test_only_the_first_rounds_are_recorded_when_asked(tmp_path):
    strategy = CuriousServer(FedAvg(), tmp_path / "record", rounds=2)
    assert final(strategy) == final(FedAvg())
    assert Record(tmp_path / "record").rounds == [1, 2]
