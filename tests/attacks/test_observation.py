"""The messages of a round, read from a record."""

import numpy as np
import pytest
import torch

from metaleak.attacks.observation import Update
from metaleak.server import Record, RecordWriter

SENT = {"w": np.full((2, 3), 5.0, dtype=np.float32), "b": np.ones(2, dtype=np.float32)}


def replies(*learners):
    return {name: np.stack([value + np.float32(learner) for learner in learners]) for name, value in SENT.items()}


@pytest.fixture
def record(tmp_path):
    writer = RecordWriter(tmp_path / "record", holds="gradient")
    sent = writer.sent(1, SENT)
    writer.reply(1, [4, 7], "b", sent, replies(4, 7))
    writer.reply(1, [2], "a", sent, replies(2))
    writer.flush()
    return Record(tmp_path / "record")


def test_it_has_the_sent_parameters_and_every_learners_reply(record):
    update = Update.of_record(record, 1)
    assert update.learners == (2, 4, 7)
    assert torch.equal(update.sent["w"], torch.full((2, 3), 5.0))
    assert update.received["b"][:, 0].tolist() == [3.0, 5.0, 8.0]
    assert update.mean_of == 1


def test_its_rows_are_the_requested_learners_in_order(record):
    update = Update.of_record(record, 1, [7, 2])
    assert update.received["b"][:, 0].tolist() == [8.0, 3.0]
    with pytest.raises(ValueError, match="learner 3 did not answer in round 1"):
        Update.of_record(record, 1, [3])


def test_what_replies_hold_must_be_known(tmp_path):
    writer = RecordWriter(tmp_path / "record")
    writer.reply(1, [0], "a", writer.sent(1, SENT), replies(0))
    writer.flush()
    with pytest.raises(ValueError, match="does not state what replies hold: gradient, delta or weights"):
        Update.of_record(Record(tmp_path / "record"), 1)
    assert Update.of_record(Record(tmp_path / "record"), 1, holds="weights").holds == "weights"


def test_gradients_follow_from_gradients_weights_and_differences(record):
    weights = Update.of_record(record, 1, holds="weights")
    # A learner that moved up by its number has followed a gradient of minus its number.
    assert weights.gradients()["b"][:, 0].tolist() == [-2.0, -4.0, -7.0]
    assert weights.gradients(0.5)["b"][:, 0].tolist() == [-4.0, -8.0, -14.0]
    assert weights.gradients(torch.tensor([1.0, 2.0, 7.0]))["w"][:, 0, 0].tolist() == [-2.0, -2.0, -1.0]
    delta = Update(weights.sent, {"b": weights.received["b"] - weights.sent["b"]}, "delta")
    assert torch.equal(delta.gradients(0.5)["b"], weights.gradients(0.5)["b"])
    same = Update.of_record(record, 1)
    assert torch.equal(same.gradients(0.5)["b"], same.received["b"])
