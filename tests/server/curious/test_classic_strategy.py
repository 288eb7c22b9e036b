"""The curious server around a classic strategy: sees what is fitted, changes nothing."""

import errno
import gc
import json

import numpy as np
import pytest
from flower_apps.fedavg import run_app
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat import LegacyContext
from flwr.server.strategy import FedAdam, FedAvg, FedTrimmedAvg
from flwr.server.workflow import DefaultWorkflow
from local_grid import LocalGrid

from metaleak.server import CuriousServer, Record, RecordWriter, curious_grid

NODES = 4


def initial():
    return ndarrays_to_parameters([np.arange(12, dtype="f4").reshape(3, 4), np.array(7.0, "f4")])


def settings(**more):
    return {"initial_parameters": initial(), "on_fit_config_fn": lambda round: {"rate": 0.1, "round": round}, **more}


class Client(NumPyClient):
    """Moves the model toward its own number, which it states."""

    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        moved = [value * 0.9 + np.float32(self.number) * 0.1 for value in parameters]
        return moved, 3 + self.number, {"partition_id": self.number, "loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.5, 3, {}


def app(client=Client):
    # Nodes have ids that ascend from 10 000; the clients sit on them in descending order.
    return ClientApp(client_fn=lambda context: client(NODES - 1 - (context.node_id - 10_000)).to_client())


def through_workflow(strategy, rounds=3, grid=None):
    """Flower's workflow for classic strategies, as `ServerApp` runs it; returns last parameters and history."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
    DefaultWorkflow()(grid or LocalGrid(app(), NODES), legacy)
    last = legacy.state.array_records["parameters"]
    return [array.numpy() for array in last.values()], legacy.history


def through_server_app(strategy, rounds=3):
    """A `ServerApp` of today's Flower, to which a classic strategy is given as a component."""
    kept = []

    def server_fn(context):
        server = Server(client_manager=SimpleClientManager(), strategy=strategy)
        kept.append(server)
        return ServerAppComponents(server=server, config=ServerConfig(num_rounds=rounds))

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    ServerApp(server_fn=server_fn)(LocalGrid(app(), NODES), context)
    return parameters_to_ndarrays(kept[0].parameters)


class Proxy(ClientProxy):
    """A client of Flower's old server, `start_server`, in this process."""

    def __init__(self, number):
        super().__init__(f"ipv4:127.0.0.1:{50000 + number}")
        self.client = Client(number)

    def fit(self, ins, timeout, group_id):
        arrays, examples, metrics = self.client.fit(parameters_to_ndarrays(ins.parameters), ins.config)
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), examples, metrics)

    def evaluate(self, ins, timeout, group_id):
        raise NotImplementedError

    get_properties = get_parameters = reconnect = evaluate


def through_server(strategy, rounds=3):
    """The `Server` that `start_server` runs."""
    manager = SimpleClientManager()
    for number in range(NODES):
        manager.register(Proxy(number))
    server = Server(client_manager=manager, strategy=strategy)
    server.fit(num_rounds=rounds, timeout=None)
    return parameters_to_ndarrays(server.parameters)


def same(left, right):
    return all(one.tobytes() == other.tobytes() for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("plain", [FedAvg, FedAdam, FedTrimmedAvg])
def test_wrapping_a_classic_strategy_changes_no_bit(tmp_path, plain):
    (expected, history), (found, other) = (
        through_workflow(strategy)
        for strategy in (plain(**settings()), CuriousServer(plain(**settings()), tmp_path / "record"))
    )
    assert same(found, expected)
    assert repr(history) == repr(other)
    assert Record(tmp_path / "record").rounds == [1, 2, 3]


@pytest.mark.parametrize("way", [through_server_app, through_server])
def test_it_goes_wherever_flower_takes_a_classic_strategy(tmp_path, way):
    # The old server's clients answer in any order, and floats are added in it.
    expected = way(FedAvg(**settings(fraction_evaluate=0.0)))
    found = way(CuriousServer(FedAvg(**settings(fraction_evaluate=0.0)), tmp_path / "record"))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    record = Record(tmp_path / "record")
    assert [record.received(round)[0] for round in record.rounds] == [list(range(NODES))] * 3


def test_what_is_fitted_is_recorded_with_what_was_sent_and_stated(tmp_path):
    through_workflow(CuriousServer(FedAvg(**settings()), tmp_path / "record", holds="weights"), rounds=2)
    record = Record(tmp_path / "record")
    learners, weights = record.received(1)
    assert (record.holds, record.message_type, learners) == ("weights", "train", list(range(NODES)))
    assert sorted(weights) == sorted(record.sent(1)) == ["0", "1"], "arrays without names are called by their place"
    assert same(record.sent(1).values(), parameters_to_ndarrays(initial()))
    for number in learners:
        fitted = Client(number).fit(record.sent(1).values(), {})[0]
        assert same([weights[name][number] for name in ("0", "1")], fitted)
    assert record.config(2) == {"rate": 0.1, "round": 2}
    assert record.metrics(2)[3] == {"partition_id": 3, "loss": 0.5, "num_examples": 6}
    assert [entry.node for entry in record.entries if entry.learner == 3] == ["10000"] * 2
    assert len(list((tmp_path / "record" / "sent").iterdir())) == 2, "the same parameters are written once a round"


def test_the_grid_records_of_a_classic_workflow_what_the_strategy_does(tmp_path):
    grid, complete = curious_grid(LocalGrid(app(), NODES), tmp_path / "grid", holds="weights")
    through_workflow(CuriousServer(FedAvg(**settings()), tmp_path / "strategy", holds="weights"), 2, grid)
    complete()
    by_grid, by_strategy = Record(tmp_path / "grid"), Record(tmp_path / "strategy")
    for round in (1, 2):
        (learners, arrays), (others, weights) = by_grid.received(round), by_strategy.received(round)
        assert learners == others
        assert list(arrays) == list(weights)
        assert same([arrays[name] for name in sorted(arrays)], [weights[name] for name in sorted(weights)])
        assert by_grid.config(round) == by_strategy.config(round)
        # On the wire there is Flower's own status, too.
        assert all(by_grid.metrics(round)[n].items() > by_strategy.metrics(round)[n].items() for n in learners)
    assert by_grid.holds == "weights"


def test_a_reply_is_on_disk_before_the_strategy_sees_it_and_complete_after_the_round(tmp_path):
    seen = []

    class Asking(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            seen.append(Record(tmp_path / "record").received(server_round)[0])
            seen.append(len(list((tmp_path / "record" / "index").iterdir())))
            return super().aggregate_fit(server_round, results, failures)

    through_workflow(CuriousServer(Asking(**settings()), tmp_path / "record"), rounds=2)
    assert seen == [list(range(NODES)), 1, list(range(NODES)), 2]


def test_its_own_methods_and_attributes_stay_reachable(tmp_path):
    plain = FedAvg(**settings())
    curious = CuriousServer(plain, tmp_path / "record")
    assert curious.num_fit_clients(10) == plain.num_fit_clients(10)
    curious.min_fit_clients = 3
    assert plain.min_fit_clients == curious.min_fit_clients == 3
    with pytest.raises(AttributeError, match="nothing"):
        _ = curious.nothing


def test_a_second_run_has_a_record_of_its_own_and_the_last_line_comes_with_the_end(tmp_path, caplog):
    curious = CuriousServer(FedAvg(**settings()), tmp_path / "record")
    with caplog.at_level("INFO", logger="flwr"):
        through_workflow(curious, rounds=2)
        curious.initial_parameters = initial()  # Flower forgets them at the start
        through_workflow(curious, rounds=1)
        assert f"8 replies are recorded in {tmp_path / 'record'}" in caplog.text
        assert "4 replies are recorded" not in caplog.text
        del curious
        gc.collect()
        assert f"4 replies are recorded in {tmp_path / 'record-2'}" in caplog.text
    assert [Record(tmp_path / name).rounds for name in ("record", "record-2")] == [[1, 2], [1]]


def test_clients_that_fail_are_counted_and_not_recorded(tmp_path, caplog):
    class Failing(Client):
        def fit(self, parameters, config):
            if self.number == 2:
                raise RuntimeError("out of battery")
            return super().fit(parameters, config)

    curious = CuriousServer(FedAvg(**settings()), tmp_path / "record")
    with caplog.at_level("INFO", logger="flwr"):
        through_workflow(curious, 1, LocalGrid(app(Failing), NODES))
        del curious
        gc.collect()
    assert Record(tmp_path / "record").received(1)[0] == [0, 1, 3]
    assert "3 replies are recorded" in caplog.text
    assert "not recorded: 1 never answered" in caplog.text


@pytest.mark.parametrize("where", ["sent", "reply", "flush"])
def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch, caplog, where):
    def full(self, *rest, **named):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    expected, _ = through_workflow(FedAvg(**settings()))
    monkeypatch.setattr(RecordWriter, where, full)
    found, _ = through_workflow(CuriousServer(FedAvg(**settings()), tmp_path / "record"))
    assert same(found, expected)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("recording has stopped, the training goes on: OSError: [Errno 28] No space left")


class Odd(FedAvg):
    """Gives the server what no record takes."""

    def configure_fit(self, server_round, parameters, client_manager):
        instructions = super().configure_fit(server_round, parameters, client_manager)
        for _, instruction in instructions:
            instruction.config = {"model": object(), "weights": b"\x80\x04", "rate": 0.1}
        return instructions


def test_what_no_record_takes_disturbs_nobody(tmp_path, caplog):
    assert through_server(CuriousServer(Odd(**settings(fraction_evaluate=0.0)), tmp_path / "record"), 1)
    assert Record(tmp_path / "record").config(1) == {"rate": 0.1}
    warnings = [record.getMessage() for record in caplog.records if record.name == "metaleak"]
    assert warnings == [
        "not recorded, because of their type or size, are these values of messages: 'model', 'weights'"
    ]


def test_other_messages_than_those_of_training_are_refused(tmp_path):
    with pytest.raises(ValueError, match="message_type is 'train'"):
        CuriousServer(FedAvg(), tmp_path / "record", message_type="evaluate")


@pytest.mark.parametrize("world", ["current", "classic"])
def test_the_app_of_flowers_own_kind_says_enough_to_be_attacked(tmp_path, world):
    truth = run_app(tmp_path / "record", clients=3, fewest=4, most=8, world=world)
    record = Record(truth.record)
    learners, _ = record.received(1)
    assert (learners, record.holds) == ([0, 1, 2], "weights")
    examples = {"current": "num-examples", "classic": "num_examples"}[world]
    assert {n: told[examples] for n, told in record.metrics(1).items()} == {
        n: len(truth.members[n]) for n in learners
    }
    assert 1 in record.config(1).values()
    assert json.loads((truth.record / "format.json").read_text())["message-type"] == "train"
