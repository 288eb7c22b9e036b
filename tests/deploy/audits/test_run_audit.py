"""Beside the attacks of a suite: what an audit proves of the guarantee that the run has."""

import pytest

from metaleak.deploy.audits.run_audit import audited_epsilon
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.results.schema import Privacy, PrivacyViolation


def experiment(*defenses, audit=300, rounds=2):
    return experiment_from(
        {
            "rule": "fomaml",
            "partition": {"learners": 10},
            "server": {"rounds": rounds},
            "defenses": list(defenses),
            "targets": {"audit": audit},
        },
        "test",
    )


SECURE = {"name": "secure-aggregation"}


@pytest.mark.parametrize(
    "defenses",
    [
        ({"name": "gaussian", "clip": 1, "epsilon": 8},),
        ({"name": "distributed-gaussian", "clip": 1, "epsilon": 8}, SECURE),
        ({"name": "record-level", "epsilon": 8},),
        ({"name": "distributed-record-level", "epsilon": 8, "adapt": {}}, SECURE),
    ],
    ids=lambda defenses: defenses[0]["name"],
)
def test_the_audit_is_of_the_whole_run_with_the_defenses_as_they_are_set(defenses):
    found = audited_epsilon(experiment(*defenses), "query")
    assert 2 < found <= 8


def test_without_trials_or_a_guarantee_there_is_none():
    assert audited_epsilon(experiment({"name": "gaussian", "clip": 1, "epsilon": 8}, audit=None), "query") is None
    assert audited_epsilon(experiment({"name": "noise", "scale": 1.0}), "query") is None


def test_an_audit_that_exceeds_the_promise_is_a_violation():
    kept = Privacy(
        accounted=4.0, accounted_run=8.0, delta=1e-5, lower_bound=0.0, confidence=0.95, gaussian_lower_bound=0.1
    )
    kept.model_copy(update={"audited": 7.9}).check()
    with pytest.raises(PrivacyViolation, match=r"the audit's 8.1 that of the whole run: a bug"):
        kept.model_copy(update={"audited": 8.1}).check()
