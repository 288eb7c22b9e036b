"""Beside the attacks of a suite: what an audit proves of the guarantee that the run has."""

import pytest

from metaleak.deploy.audits.run_audit import run_audit
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
        ({"name": "distributed-gaussian", "clip": 1, "epsilon": 8, "least_learners": 9}, SECURE),
        ({"name": "record-level", "epsilon": 8},),
        ({"name": "distributed-record-level", "epsilon": 8, "adapt": {}}, SECURE),
    ],
    ids=lambda defenses: defenses[0]["name"],
)
def test_the_audit_is_of_the_whole_run_with_the_defenses_as_they_are_set(defenses):
    found = run_audit(experiment(*defenses), "query")
    assert 2 < found.lower_bound <= found.accounted
    assert found.accounted == pytest.approx(8, rel=1e-3)


def test_without_trials_or_a_guarantee_there_is_none():
    assert run_audit(experiment({"name": "gaussian", "clip": 1, "epsilon": 8}, audit=None), "query") is None
    assert run_audit(experiment({"name": "noise", "scale": 1.0}), "query") is None


def test_an_audit_that_exceeds_the_promise_for_its_own_set_is_a_violation():
    kept = Privacy(
        accounted=4.0, accounted_run=16.0, delta=1e-5, lower_bound=0.0, confidence=0.95, accounted_audited=8.0
    )
    kept.model_copy(update={"audited": 7.9}).check()
    with pytest.raises(
        PrivacyViolation, match=r"^the audit's epsilon 8.1 exceeds the 8 that is accounted for of the"
    ):
        kept.model_copy(update={"audited": 8.1}).check()


def test_the_promise_that_an_audit_is_compared_with_is_that_of_the_set_that_it_asks_about():
    defense = {"name": "record-level", "noise_multiplier": 1.0}
    given = experiment_from(
        {
            "rule": {"name": "maml", "inner_steps": 2, "order": 1},
            "partition": {"learners": 10},
            "server": {"rounds": 2},
            "defenses": [defense],
            "targets": {"audit": 300},
        },
        "test",
    )
    both = given.built_defenses()[0].epsilons_after(2)
    assert both["query"] < both["support"]
    assert run_audit(given, "query").accounted == pytest.approx(both["query"])
