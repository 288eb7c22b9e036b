"""Named measures of an attack's success."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.membership import Evaluation

AUC = "AUC"
"""The name of the headline measure of membership inference."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


def tpr_at(level: str) -> str:
    """Return the name of the measure "true-positive rate at the false-positive rate `level`"."""
    return f"TPR at {level} FPR"


class Measure(BaseModel):
    """A measure of an attack's success, with its 95 % interval `[low, high]`.

    A higher value means a larger leak, or a smaller one if `higher_leaks` is false. Attacks are ranked by the one
    measure that is their `headline`.
    """

    # A file written by a later version may have further fields.
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=40)]
    value: Finite
    low: Finite
    high: Finite
    higher_leaks: bool = True
    headline: bool = False


def membership_measures(evaluation: Evaluation) -> tuple[Measure, ...]:
    """Return the measures of membership inference, without rates that too few non-members leave unresolved."""
    rates = {tpr_at(level): rate for level, rate in evaluation.tpr.items()}
    named = {AUC: evaluation.auc, **rates, "balanced accuracy": evaluation.balanced_accuracy}
    return tuple(
        Measure(name=name, headline=name == AUC, **estimate.model_dump())
        for name, estimate in named.items()
        if estimate is not None
    )
