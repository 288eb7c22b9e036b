"""Queries of a released model: answers are checked and counted, and reduced to their visible part."""

import pytest
import torch

from metaleak.attacks.pretraining.evidence import log_odds
from metaleak.attacks.pretraining.query import BudgetSpent, Metered, ask, restricted


class Model:
    """An opaque model of three classes; `spoil` changes its answer."""

    def __init__(self, spoil=lambda answer: answer):
        self.spoil = spoil

    def predict(self, inputs):
        return self.spoil(inputs.flatten(1)[:, :3].softmax(1))


INPUTS = torch.randn(10, 3, 2, generator=torch.Generator().manual_seed(0))


def row_of_nan(answer):
    answer[1] = torch.nan
    return answer


def fails_once(answer, calls=None):
    calls = fails_once.__dict__.setdefault("calls", [])
    calls.append(1)
    if len(calls) == 2:
        raise RuntimeError("the model is\noverloaded")
    return answer


@pytest.mark.parametrize(
    ("spoil", "kept", "complaint"),
    [
        (row_of_nan, 8, "predict: 2 of 10 queries have no answer (2: returned NaN or an infinite number)"),
        (
            lambda answer: torch.cat([answer[:1] * 2, answer[1:]]),
            8,
            "predict: 2 of 10 queries have no answer (2: returned scores that are not probabilities: they must be at "
            "least 0 and add up to 1)",
        ),
        (fails_once, 5, "predict: 5 of 10 queries have no answer (5: RuntimeError: the model is)"),
    ],
)
def test_a_bad_answer_is_reported_in_one_line_and_loses_no_other(spoil, kept, complaint):
    found = ask(Model(spoil), INPUTS, 3, at_once=5)
    assert int(found.answered.sum()) == kept
    assert found.complaint == complaint
    whole = ask(Model(), INPUTS, 3).probabilities
    assert torch.equal(found.probabilities[found.answered], whole[found.answered])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda answer: answer[:, :2], "returned 2 classes, not 3"),
        (lambda answer: None, "returned nothing"),
        (lambda answer: answer[0], r"returned the shape \(3,\), not \(10, 3\)"),
    ],
)
def test_a_model_that_never_answers_is_refused_in_one_line(spoil, reason):
    with pytest.raises(ValueError, match=rf"^predict: 10 of 10 queries have no answer \(10: {reason}\)$"):
        ask(Model(spoil), INPUTS, 3)


def test_probabilities_that_rounding_left_outside_their_range_have_finite_log_odds():
    rounded = torch.tensor([[1.0004, -0.0003, -0.0001], [0.5, 0.5005, -0.0005]])
    found = ask(Model(lambda answer: rounded), INPUTS[:2], 3)
    assert found.complaint == ""
    assert torch.equal(found.probabilities, rounded.double().clamp(0, 1))
    assert log_odds(found.probabilities).isfinite().all()


def test_queries_are_counted_and_stop_at_the_budget():
    metered = Metered(Model(), budget=7)
    found = ask(metered, INPUTS, 3, at_once=3)
    assert (metered.spent, int(found.answered.sum())) == (7, 7)
    assert found.complaint == "predict: 3 of 10 queries have no answer (3: the budget of 7 queries is used up)"
    with pytest.raises(BudgetSpent):
        metered.predict(INPUTS[:2])


def test_the_rate_limit_is_kept_by_waiting():
    waited, now = [], [0.0]

    def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds

    metered = Metered(Model(), per_second=2, clock=lambda: now[0], sleep=sleep)
    ask(metered, INPUTS, 3, at_once=5)
    assert waited == [2.5]


def test_access_limits_answers_to_the_largest_probabilities_or_the_label():
    answer = torch.tensor([[0.5, 0.3, 0.1, 0.1], [torch.nan] * 4])
    assert torch.allclose(restricted(answer, 1)[0], torch.tensor([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3]))
    assert torch.equal(restricted(answer, "label")[0], torch.tensor([1.0, 0, 0, 0]))
    assert torch.equal(restricted(answer, 4)[0], answer[0])
    assert restricted(answer, "label")[1].isnan().all()
    assert restricted(answer, 2)[1].isnan().all()
