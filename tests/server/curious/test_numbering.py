"""Which learner a reply belongs to: the id that it states, or else its node's order of arrival."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid

from metaleak.server import CuriousServer, Record, curious_grid
from metaleak.server.curious.numbering import Numbering
from metaleak.server.record.layout import AGGREGATE

NODES = 4


def recorded(path, state, rounds=2, **settings):
    """Record an app whose node `node` (in 0..3, the last answers first) states `state(node, round)` in its reply."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_id - 10_000
        stated = state(node, message.content["config"]["server-round"])
        content = {"arrays": ArrayRecord({"w": Array(np.full(2, node, "f4"))})}
        for number, record in enumerate(stated if isinstance(stated, tuple) else (stated,)):
            content[f"stated-{number}"] = record
        return Message(RecordDict(content), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, NODES), path, **settings)
    for round in range(1, rounds + 1):
        sent = {
            "arrays": ArrayRecord({"w": Array(np.zeros(2, "f4"))}),
            "config": ConfigRecord({"server-round": round}),
        }
        list(grid.send_and_receive([Message(RecordDict(sent), n, MessageType.TRAIN) for n in grid.get_node_ids()]))
    complete()
    return Record(path)


def who(record, round):
    """The learner of each node."""
    learners, arrays = record.received(round)
    return {int(value[0]): learner for learner, value in zip(learners, arrays["w"], strict=True)}


@pytest.mark.parametrize("key", ["partition-id", "partition_id", "client-id", "client_id", "cid"])
@pytest.mark.parametrize("kind", [MetricRecord, ConfigRecord])
def test_the_id_that_a_reply_states_is_its_learner(tmp_path, caplog, key, kind):
    record = recorded(tmp_path / "record", lambda node, round: kind({key: 10 * (node + round), "loss": 0.5}))
    assert who(record, 1) == {node: 10 * (node + 1) for node in range(NODES)}
    assert who(record, 2) == {node: 10 * (node + 2) for node in range(NODES)}, "whichever node it comes from"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize(("stated", "learner"), [("7", 7), (7.0, 7), ("0", 0)])
def test_an_id_may_be_a_text_or_a_float(stated, learner):
    assert Numbering().number("node", {"cid": stated}, {}) == (learner, "")


@pytest.mark.parametrize(
    "wrong", [-1, 1.5, float("nan"), True, "seven", "", "-1", "٣", [3], AGGREGATE, 2**63, "9" * 30]
)
def test_what_is_no_id_is_numbered_by_arrival_with_a_reason(wrong):
    numbering = Numbering()
    reason = "states a 'cid' that is not a whole number >= 0"
    assert numbering.number("a", {"cid": wrong}, {}) == (0, reason)
    assert numbering.number("b", {"cid": wrong}, {}) == (1, reason)
    assert numbering.number("a", {"cid": wrong}, {}) == (0, reason), "the same node is the same learner"


def test_two_learners_with_one_id_in_a_round_are_told_apart_with_one_line(tmp_path, caplog):
    record = recorded(tmp_path / "record", lambda node, round: MetricRecord({"cid": max(node, 1)}))
    for round in (1, 2):
        found = who(record, round)
        assert {node: found[node] for node in (1, 2, 3)} == {1: 1, 2: 2, 3: 3}
        assert found[0] == 0
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warnings == [
        "round 1: node 10000 states a 'cid' that another node has stated in the same round: "
        "its number is that of its arrival"
    ]


def test_a_number_by_arrival_never_becomes_another_learners_id():
    numbering = Numbering()
    assert numbering.number("a", {"cid": 0}, {}) == (0, "")
    assert numbering.number("b", {}, {}) == (1, "")
    assert numbering.number("c", {"cid": 1}, {}) == (2, "states a 'cid' that is already the number of another node")
    assert numbering.number("d", {}, {}) == (3, "")


def test_a_name_of_the_callers_own_is_where_the_id_stands(tmp_path, caplog):
    def state(node, round):
        return MetricRecord({"partition-id": node}), ConfigRecord({"hospital": NODES + node} if node else {})

    record = recorded(tmp_path / "record", state, identity="hospital")
    assert who(record, 2) == {0: 0, 1: 5, 2: 6, 3: 7}
    assert "round 1: node 10000 states no 'hospital': its number is that of its arrival" in caplog.text
    with pytest.raises(ValueError, match="identity must be a name"):
        CuriousServer(object.__new__(type("S", (), {"start": print})), tmp_path / "other", identity="")


def test_what_a_reply_states_is_recorded_as_its_learners(tmp_path, caplog):
    def state(node, round):
        told = ConfigRecord({"name": f"node {node}", "key": b"secret", "rates": [0.5, -1.0]})
        return MetricRecord({"cid": node, "num-examples": 10 + node, "loss": float("nan")}), told

    record = recorded(tmp_path / "record", state, rounds=1)
    for learner, stated in record.metrics(1).items():
        assert np.isnan(stated.pop("loss"))
        assert stated == {
            "cid": learner,
            "num-examples": 10 + learner,
            "name": f"node {learner}",
            "rates": [0.5, -1.0],
        }
    assert record.config(1) == {"server-round": 1}
    assert caplog.text.count("not recorded, because of their type or size, are these values of replies: 'key'") == 1


def test_two_records_of_one_reply_that_state_one_name_are_told_apart(tmp_path):
    record = recorded(tmp_path / "record", lambda node, round: (MetricRecord({"x": 1}), ConfigRecord({"x": "a"})))
    assert record.metrics(1)[0] == {"stated-0/x": 1, "stated-1/x": "a"}


def test_a_list_of_a_value_for_each_stacked_learner_is_theirs(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = ArrayRecord({"w": Array(np.array([[0.0], [np.nan], [2.0]], "f4"))})
        metrics = MetricRecord({"loss": [0.1, 0.2, 0.3], "num-examples": 3, "pair": [1, 2]})
        config = ConfigRecord({"learner-ids": [5, 8, 2]})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics, "config": config}), reply_to=message)

    grid, complete = curious_grid(LocalGrid(app, 1), tmp_path / "record")
    sent = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(1, "f4"))})})
    list(grid.send_and_receive([Message(sent, node, MessageType.TRAIN) for node in grid.get_node_ids()]))
    complete()
    metrics = Record(tmp_path / "record").metrics(1)
    assert metrics == {
        5: {"loss": 0.1, "num-examples": 3, "pair": [1, 2]},
        2: {"loss": 0.3, "num-examples": 3, "pair": [1, 2]},
    }
