"""An app of Flower's own kind, recorded in both of Flower's worlds."""

import numpy as np
import pytest
from flower_apps.fedavg import run_app
from flower_apps.networks import initialized

from metaleak.server import Record

WORLDS = ("current", "classic")


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_both_worlds_record_the_same_weights(tmp_path, model):
    truths = {world: run_app(tmp_path / world, model, clients=3, rounds=2, world=world) for world in WORLDS}
    names = list(initialized(model, 0).state_dict())
    current, classic = (Record(truths[world].record) for world in WORLDS)
    for number, name in enumerate(names):
        assert current.sent(1)[name].tobytes() == classic.sent(1)[str(number)].tobytes()
        stacked, others = current.received(1)[1][name], classic.received(1)[1][str(number)]
        assert sorted(row.tobytes() for row in stacked) == sorted(row.tobytes() for row in others)
        # Flower's two averages add in another order.
        np.testing.assert_allclose(current.sent(2)[name], classic.sent(2)[str(number)], rtol=1e-4, atol=1e-6)
        assert not np.array_equal(current.sent(1)[name], current.sent(2)[name])


def test_the_truth_says_who_held_what(tmp_path):
    truth = run_app(tmp_path / "record", clients=5, fewest=4, most=12)
    assert [len(own) for own in truth.members.values()] == [4, 6, 8, 10, 12]
    held = [index for own in truth.members.values() for index in own]
    assert len(set(held)) == len(held) == 40
    assert sorted(held + truth.outsiders) == list(range(len(truth.images)))
    assert abs(float(truth.images.mean())) < 0.05
    assert np.isclose(float(truth.images.std()), 1, atol=0.05)
