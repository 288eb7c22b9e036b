"""How many episodes at once: measured, remembered, bounded, and forced where it must be."""

import json

import pytest
import torch
from small_federation import federation

from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.clients.models import Conv4
from metaleak.clients.rules import MAML
from metaleak.defenses import Noise
from metaleak.deploy.simulate.measured_chunk import CHUNKS, bytes_per_episode, measured_chunk

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "metaleak" / "chunks.json"


def test_a_small_network_is_computed_many_at_once():
    """Measured: a loop takes several times as long, so this holds on a busy machine too."""
    assert measured_chunk(federation(), CPU) > 1


def test_the_choice_is_remembered_for_this_model_and_rule_alone(cache):
    measured_chunk(federation(), CPU)
    (key,) = json.loads(cache.read_text())
    other = next(chunk for chunk in CHUNKS if chunk != json.loads(cache.read_text())[key])
    cache.write_text(json.dumps({key: other}))
    assert measured_chunk(federation(), CPU) == other, "nothing is measured again"
    assert measured_chunk(federation(seed=2), CPU) == other, "the seed does not matter"
    measured_chunk(federation(rule=MAML(inner_steps=2)), CPU)
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("damage", ["", "[1, 2]", '{"a": 1', '{"a": "b"}'])
def test_a_damaged_memory_is_measured_anew(cache, damage):
    cache.parent.mkdir(parents=True)
    cache.write_text(damage)
    assert measured_chunk(federation(), CPU) in CHUNKS


def test_noise_inside_the_rule_means_one_by_one():
    assert measured_chunk(federation(defenses=(Noise(place="inner"),)), CPU) == 1


def test_the_memory_bound_holds():
    wide = federation(data=EmbeddedMNIST(), model=Conv4(filters=8))
    one = bytes_per_episode(wide, wide.initial_parameters())
    assert measured_chunk(wide, CPU, memory=one * 3) == 1
    assert measured_chunk(federation(), CPU, memory=1) == 1


def test_an_episodes_memory_grows_with_the_network_and_its_steps():
    small = federation()
    start = small.initial_parameters()
    one = bytes_per_episode(small, start)
    assert one > sum(value.numel() * 4 for value in start.values())
    assert bytes_per_episode(federation(rule=MAML(inner_steps=4)), start) > 2 * one
