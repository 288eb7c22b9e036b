"""Simulated trouble: as often as asked, the same for the same seed, independent of everything else."""

import math

import pytest

from metaleak.clients.faults import Faults

MANY = 4000


def kinds(faults, seed=1, round=1):
    absences = [faults.absence(seed, round, learner) for learner in range(MANY)]
    return {
        kind: sum(a is not None and a.kind == kind for a in absences) / MANY for kind in ("dropped", "late", "failed")
    }


@pytest.mark.parametrize("kind", ["dropped", "failed"])
def test_a_fault_is_as_frequent_as_asked(kind):
    found = kinds(Faults(**{"dropout" if kind == "dropped" else "failure": 0.3}))
    assert found[kind] == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / MANY))
    assert sum(found.values()) == found[kind]


def test_a_straggler_is_late_when_its_exponential_delay_passes_the_deadline():
    found = kinds(Faults(straggler=0.5, delay=30, deadline=30))["late"]
    expected = 0.5 * math.exp(-1)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / MANY))


def test_without_a_deadline_nobody_is_late():
    assert kinds(Faults(straggler=1.0))["late"] == 0


def test_the_same_key_has_the_same_trouble_and_another_round_another():
    faults = Faults(dropout=0.5)
    rounds = [[faults.absence(1, round, learner) is None for learner in range(100)] for round in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]


def test_no_faults_are_no_trouble():
    assert set(kinds(Faults()).values()) == {0.0}
