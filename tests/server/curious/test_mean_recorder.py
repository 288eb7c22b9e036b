"""Under secure aggregation: the record has the mean of a round, whose it is, and nothing of a single learner."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from local_grid import LocalGrid
from safetensors.numpy import save_file
from small_federation import federation

from metaleak.clients import client_app
from metaleak.clients.faults import Faults
from metaleak.server import AGGREGATE, CuriousServer, MeanRecorder, MetaLearner, Record, RecordError, RecordWriter

LEARNERS = 10
SENT = "sent/000001-0000.safetensors"
RIGHT = {"round": "1", "node": "n", "sent": SENT, "received": "1.5", "learners": str(AGGREGATE), "mean-of": "4,7"}


def recorded(path, faults=None, rounds=None, secure=True, chunk=4):
    """Record three rounds of the small federation, with or without secure aggregation."""
    everyone = federation(**({"faults": faults} if faults else {}))
    writer = RecordWriter(path)
    recorder = MeanRecorder(writer, rounds)
    strategy = MetaLearner(LEARNERS, seed=1, chunk=chunk, on_round=recorder.take if secure else None)
    initial = ArrayRecord({name: Array(value.numpy()) for name, value in everyone.initial_parameters().items()})
    wrapped = strategy if secure else CuriousServer(strategy, writer, rounds)
    wrapped.start(LocalGrid(client_app(everyone)), initial, num_rounds=3)
    return Record(path)


@pytest.mark.parametrize("faults", [None, Faults(dropout=0.4, failure=0.1)])
def test_it_is_the_mean_of_what_those_who_answered_sent(tmp_path, faults):
    secure, open_ = recorded(tmp_path / "secure", faults), recorded(tmp_path / "open", faults, secure=False)
    assert secure.rounds == open_.rounds == [1, 2, 3]
    for round in secure.rounds:
        learners, gradients = open_.received(round)
        assert open_.mean_of(round) == []
        assert (len(learners) < LEARNERS) == (faults is not None)
        assert secure.mean_of(round) == learners
        who, mean = secure.received(round)
        assert who == [AGGREGATE]
        for name, value in gradients.items():
            assert (mean[name].shape, mean[name].dtype) == ((1, *value.shape[1:]), np.float32)
            expected = value.mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(mean[name][0], expected, rtol=1e-6, atol=1e-12)
        assert all(np.array_equal(secure.sent(round)[name], sent) for name, sent in open_.sent(round).items())


def test_no_learners_own_numbers_are_in_any_file(tmp_path):
    secure, open_ = recorded(tmp_path / "secure"), recorded(tmp_path / "open", secure=False)
    _, gradients = open_.received(2)
    traces = [value[row].tobytes() for value in gradients.values() for row in range(LEARNERS)]
    found = {}
    for record in (secure, open_):
        content = b"".join(path.read_bytes() for path in sorted(record.path.rglob("*")) if path.is_file())
        found[record.path.name] = sum(trace in content for trace in traces)
    assert found == {"secure": 0, "open": len(traces)}, "and the search would find them"


def test_the_chunks_change_the_mean_in_its_last_bits_only(tmp_path):
    one, other = recorded(tmp_path / "one", chunk=1), recorded(tmp_path / "other", chunk=5)
    for name, value in one.received(1)[1].items():
        np.testing.assert_allclose(other.received(1)[1][name], value, rtol=1e-4, atol=1e-8)


def test_only_the_first_rounds_when_so_told_and_none_without_an_answer(tmp_path):
    assert recorded(tmp_path / "short", rounds=2).rounds == [1, 2]
    assert recorded(tmp_path / "silent", Faults(dropout=1.0)).rounds == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean-of": ""},
        {"mean-of": "4,4"},
        {"mean-of": "4,-7"},
        {"learners": "4"},
        {"learners": f"4,{AGGREGATE}"},
        {"mean-of": None},
    ],
)
def test_a_header_that_does_not_go_together_is_refused(tmp_path, wrong):
    RecordWriter(tmp_path)
    header = {key: value for key, value in (RIGHT | wrong).items() if value is not None}
    rows = len(header["learners"].split(","))
    save_file({"w": np.ones((1, 3), "f4")}, tmp_path / SENT)
    reply = tmp_path / "replies" / "000001-0000.safetensors"
    save_file({"w": np.ones((rows, 3), "f4")}, reply, header)
    with pytest.raises(RecordError, match="learner"):
        Record(tmp_path).received(1)
    save_file({"w": np.ones((1, 3), "f4")}, reply, RIGHT)
    assert Record(tmp_path).received(1)[0] == [AGGREGATE], "the right one can be read"


def test_a_learner_cannot_pass_for_all(tmp_path):
    """The number of the mean is refused in a reply that is not one."""
    writer = RecordWriter(tmp_path)
    for learners, mean_of in (([AGGREGATE], ()), ([3], (3, 4)), ([3, AGGREGATE], ())):
        with pytest.raises(RecordError, match="exclude each other"):
            writer.reply(1, learners, "node", SENT, {"w": np.ones((len(learners), 2), "f4")}, mean_of=mean_of)
    assert Record(tmp_path).rounds == []
