"""The schema of what simulations, attacks and suites write: each file's content as a class."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import Measure, membership_measures
from metaleak.attacks.evaluation.membership import Evaluation

MAX_CELLS = 10_000
"""Cells of one suite."""

Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


def _with_zone(value: str) -> str:
    try:
        zone = datetime.fromisoformat(value).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise ValueError("must be a time with its zone, such as 2026-01-31T12:00:00+00:00")
    return value


Time = Annotated[str, AfterValidator(_with_zone)]
"""A time in ISO 8601 whose zone is known."""


class Written(BaseModel):
    """A part of a file; unknown fields, such as a later version's, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RunState(Written):
    """`run.json`: the state of a simulation; `chunk` learners are computed at once, `error` says why it `failed`."""

    status: Literal["running", "done", "failed", "interrupted"] = "running"
    started: Time | None = None
    finished: Time | None = None
    seconds: float | None = None
    seed: int | None = None
    versions: dict[str, str] = {}
    chunk: Annotated[int, Field(ge=1, le=4096)] | None = None
    error: str | None = None


class Round(Written):
    """A line of `metrics.jsonl`: loss and adapted accuracy in [0, 1] on held-out tasks, if measured.

    `learners` answered; the others that were asked `dropped` out, answered too `late`, `failed` or were `refused`.
    """

    round: Count
    loss: float | None = None
    learners: int = 0
    dropped: int = 0
    late: int = 0
    failed: int = 0
    refused: int = 0
    seconds: float = 0.0
    accuracy: Fraction | None = None
    accuracy_low: Fraction | None = None
    accuracy_high: Fraction | None = None


class PrivacyViolation(ValueError):
    """An attack that did better than a guarantee allows: a bug in the defense, its accounting or the evaluation."""


class Privacy(Written):
    """The epsilon at `delta` that is `accounted` for, and the lower bounds that an attack's scores put on it.

    `accounted` is that of the rounds up to the last that was attacked, `accounted_run` that of the whole run; `None`
    without a guarantee, or with one that is infinite. `ceiling` is the `lower_bound` of an attack without an error on
    the same targets, the most that can be proven with so few, and `gaussian_ceiling` the same for
    `gaussian_lower_bound`. `lower_bound` exceeds the true epsilon
    with a chance of 1 - `confidence` at most, whatever the mechanism; so does `gaussian_lower_bound`, the sharper
    one, which is there only where what is accounted for promises to be Gaussian (see `Modeled`). `one_run` (Steinke
    et al. 2023) rests on assumptions that only about hold, see `one_run_lower_bound`, and decides nothing. `audited`
    is what an audit proves of the whole run, where there was one (`targets.audit`), and `accounted_audited` what is
    accounted for of the set that it asks about: `accounted_run` is that of the set with the greater epsilon.
    """

    accounted: Epsilon | None
    delta: Annotated[float, Field(ge=0, lt=1)]
    lower_bound: Epsilon
    confidence: Annotated[float, Field(gt=0, lt=1)]
    gaussian_lower_bound: Epsilon | None = None
    one_run: Epsilon | None = None
    accounted_run: Epsilon | None = None
    ceiling: Epsilon | None = None
    gaussian_ceiling: Epsilon | None = None
    audited: Epsilon | None = None
    accounted_audited: Epsilon | None = None

    @property
    def proven(self) -> float:
        """The greater of the lower bounds that hold."""
        return max(self.lower_bound, self.gaussian_lower_bound or 0.0)

    @property
    def at_ceiling(self) -> bool:
        """Whether no attack on the same targets could prove more."""
        return self.ceiling is not None and self.lower_bound >= self.ceiling - 1e-9

    @property
    def violated(self) -> bool:
        """Whether a lower bound exceeds what was accounted for."""
        return self._audit_exceeds or self._attack_exceeds

    @property
    def _audit_exceeds(self) -> bool:
        if self.audited is None or self.accounted_audited is None:
            return False
        return self.audited > self.accounted_audited

    @property
    def _attack_exceeds(self) -> bool:
        return self.accounted is not None and self.proven > self.accounted

    def check(self) -> None:
        """Raise `PrivacyViolation` in one line when a lower bound exceeds what was accounted for."""
        if self._attack_exceeds:
            raise PrivacyViolation(
                f"the empirical epsilon {self.proven:.4g} ({100 * self.confidence:g} % lower bound) exceeds the "
                f"accounted {self.accounted:.4g}: a bug in the defense, its accounting or the evaluation"
            )
        if self._audit_exceeds:
            raise PrivacyViolation(
                f"the audit's epsilon {self.audited:.4g} exceeds the {self.accounted_audited:.4g} that is accounted "
                "for of the audited set in the whole run: a bug in the defense or its accounting"
            )


class Cost(Written):
    """The bytes that carry one learner's defended meta-gradient, and those of all entries in float32."""

    bytes_per_learner: Count
    dense_bytes: Count


class ReleasedModels(Written):
    """The accuracies of the models of a study of pretraining, on average over them.

    `accuracy` is that of the released models on the downstream examples, `start_accuracy` that of their starts on
    what each was pretrained on, and `start_accuracy_outside` on the rest of the pool. `epsilon` at `delta` is the
    guarantee of a private finetuning for the downstream examples; it does not cover the pretraining data.
    """

    accuracy: Estimate
    start_accuracy: Fraction
    start_accuracy_outside: Fraction
    epsilon: Epsilon | None = None
    delta: Fraction | None = None


class AttackResult(Written):
    """`attack.json`: the settings and the result of one attack on one run.

    `attack` and `targets` are its settings, defaults included; `rounds` recorded rounds from `round` on were attacked
    together, and `mean_of` learners were seen in a mean alone (1: each by itself). It `asks` about learners' query or
    support sets, or, of released models, about the training of their `start`. `evaluation` is of membership, with the
    AUC of each of its `statistics` by itself, taking small values for "member"; it is there for every attack whose
    truth is known. Of an attack that only reconstructs the scores are the distances to the nearest reconstruction:
    `by_nearest`. `measured` is what else was measured, such as how much reconstructions resemble the truth. A
    `ceiling` is given more than any adversary has: it is shown beside the attacks and is never the strongest of them.
    """

    attack: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    asks: Literal["query", "support", "start"] | None = None
    round: int | None = None
    rounds: int | None = None
    mean_of: Annotated[int, Field(ge=1)] = 1
    knows: str = ""
    seconds: float | None = None
    evaluation: Evaluation | None = None
    privacy: Privacy | None = None
    cost: Cost | None = None
    statistics: dict[str, Estimate] = {}
    by_nearest: bool = False
    measured: Annotated[tuple[Measure, ...], Field(max_length=100)] = ()
    ceiling: bool = False
    released: ReleasedModels | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures of the attack, of what it is made for first."""
        membership = membership_measures(self.evaluation) if self.evaluation else ()
        return (*self.measured, *membership) if self.by_nearest else (*membership, *self.measured)

    @property
    def headlines(self) -> tuple[Measure, ...]:
        """The measures by which the attack is compared with others: one of membership, one of reconstruction."""
        return tuple(measure for measure in self.measures if measure.headline)

    @property
    def headline(self) -> Measure | None:
        """The one of what the attack is made for."""
        return next(iter(self.headlines), None)


class Cell(Written):
    """One cell of a suite: an attack on a run, or the run alone; several cells may share a run.

    `defenses`, `attack_config` and `experiment` (its data, task, model, targets and the like) are what was set,
    defaults included. `status` is `waiting` until it is run; `not applicable` when the attack cannot be made on
    such a model; then and when it `failed`, `error` says why.
    """

    id: str
    run: str
    label: str = ""
    defenses: tuple[dict[str, Any], ...] = ()
    attack: str
    attack_config: dict[str, Any] = {}
    experiment: dict[str, Any] = {}
    status: Literal["waiting", "done", "failed", "not applicable"] = "done"
    error: str | None = None


class SuiteState(Written):
    """`suite.json`: the cells of a suite in its order."""

    name: str = "suite"
    cells: Annotated[tuple[Cell, ...], Field(max_length=MAX_CELLS)] = ()
