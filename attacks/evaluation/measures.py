"""Named numbers that say how much an attack learned."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.membership import Evaluation

AUC = "AUC"
"""The headline of an attack that asks for membership."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


def tpr_at(level: str) -> str:
    """Return the name of the measure that is the true-positive rate at the false-positive rate `level`."""
    return f"TPR at {level} FPR"


class Measure(BaseModel):
    """A number that says how much an attack learned, with its 95 % interval `[low, high]`.

    The more it leaked, the higher it is, or with `higher_leaks` false the lower. One measure of an attack is its
    `headline`, by which it is compared with others of the same headline.
    """

    # A file of a later version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=40)]
    value: Finite
    low: Finite
    high: Finite
    higher_leaks: bool = True
    headline: bool = False


def membership_measures(evaluation: Evaluation) -> tuple[Measure, ...]:
    """Return the measures of an attack that asks for membership; a rate that is not resolved is left out."""
    rates = {tpr_at(level): rate for level, rate in evaluation.tpr.items()}
    named = {AUC: evaluation.auc, **rates, "balanced accuracy": evaluation.balanced_accuracy}
    return tuple(
        Measure(name=name, headline=name == AUC, **estimate.model_dump())
        for name, estimate in named.items()
        if estimate is not None
    )
