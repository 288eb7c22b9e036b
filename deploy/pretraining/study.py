"""The configuration of a study: pretraining, finetuning, and what is asked about."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaleak.attacks.pretraining.training import Training
from metaleak.deploy.config.experiment import EngineSettings
from metaleak.deploy.config.plugins import Kind, Plugin, must_be_buildable

_STRICT = ConfigDict(frozen=True, extra="forbid")
_PLACE = ("data_dir", "download")
"""Keys of a data set that name its place and do not decide its content."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,99}")


class Source(BaseModel):
    """Examples of a data set: of its `classes` (default all), at most `examples`, drawn at random.

    Each image is used in as many orientations as `rotations` says, and each orientation of a class is a class of its
    own.
    """

    model_config = _STRICT

    data: Plugin
    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)] | None = None
    examples: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    rotations: Literal[1, 2, 4] = 1


class PrivateSteps(BaseModel):
    """Finetuning by `steps` of gradient descent over all examples, with privacy for each (DP-SGD without sampling).

    Each example's gradient is clipped to the L2 norm `clip`, and Gaussian noise is added to the mean, so that all
    steps together are (`epsilon`, `delta`)-differentially private. Instead of `epsilon` the `noise_multiplier` of
    each step can be given; with 0 there is no noise, only clipping.
    """

    model_config = _STRICT

    epsilon: Annotated[float, Field(gt=0, le=10_000)] | None = None
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    rate: Annotated[float, Field(gt=0)] = 0.5

    @model_validator(mode="after")
    def _one_of_two(self) -> "PrivateSteps":
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("epsilon: give either epsilon, for all steps, or noise_multiplier")
        return self


class Finetuning(BaseModel):
    """How a pretrained model is finetuned into the one that is released.

    The classifier is replaced by a new one. It (`moves: head`) or the whole network (`moves: all`) is trained on a
    random `part` of the downstream examples. With `private` steps `training` is not used. `statistics` says on which
    examples the statistics of batch normalization are computed, those of pretraining or of finetuning; they are fixed
    in the released model. With `private` steps they must be those of pretraining, because the others would be
    released without noise.
    """

    model_config = _STRICT

    part: Annotated[float, Field(gt=0, le=1)] = 0.85
    moves: Literal["head", "all"] = "head"
    training: Training = Training(epochs=35, momentum=0.0, schedule="step")
    private: PrivateSteps | None = None
    statistics: Literal["pretraining", "finetuning"] = "pretraining"

    @model_validator(mode="after")
    def _statistics_are_private(self) -> "Finetuning":
        if self.private is not None and self.statistics == "finetuning":
            raise ValueError("statistics: must be pretraining with private steps: those of finetuning have no noise")
        return self


class Queries(BaseModel):
    """The queries to a released model about each point.

    The model is asked about the point itself and about `augmented` random flips and shifts of it. `access` is the
    part of an answer that is visible: `all` probabilities, the k largest (a number k), or only the `label`. The model
    behind `--victim` is asked at most `budget` times for all attacks together, and at most `per_second` times per
    second.
    """

    model_config = _STRICT

    augmented: Annotated[int, Field(ge=0, le=1000)] = 0
    access: Literal["all", "label"] | Annotated[int, Field(ge=1)] = "all"
    budget: Annotated[int, Field(ge=1)] | None = None
    per_second: Annotated[float, Field(gt=0)] | None = None


class Study(BaseModel):
    """Models that are pretrained on random halves of a pool and finetuned; each in turn is attacked with the others.

    As many `models` are pretrained, each from its own initialization and on its own half of the pool. The first
    `victims` of them (default all) are attacked, each with the help of `shadows` of the others, drawn at random
    (default all). `points` is the number of examples of the pool that are asked about. Each of the named
    `finetunings` makes a released model. With `standardized` inputs have mean 0 and standard deviation 1 over the
    pool.
    """

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=200)] = "study"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: Plugin = Plugin(name="mlp", hidden=[128])
    pool: Source = Source(data=Plugin(name="mnist-5k"), examples=2000)
    downstream: Source = Source(data=Plugin(name="digits"))
    standardized: bool = True
    pretraining: Training = Training(epochs=50)
    finetunings: Annotated[dict[str, Finetuning], Field(min_length=1)] = {"head": Finetuning()}
    models: Annotated[int, Field(ge=4, le=10_000)] = 33
    victims: Annotated[int, Field(ge=1)] | None = None
    shadows: Annotated[int, Field(ge=3)] | None = None
    points: Annotated[int, Field(ge=2, le=1_000_000)] = 1000
    queries: Queries = Queries()
    attacks: tuple[Plugin, ...] = (Plugin(name="gaussian-ratio"), Plugin(name="white-box-lira"))
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _fits(self) -> "Study":
        for name in self.finetunings:
            # A result's folder is called so.
            if _FILE_NAME.fullmatch(name) is None:
                raise ValueError(
                    f"finetunings: a name must be 1 to 100 of A-Z, a-z, 0-9, '.', '_', '-' and space, "
                    f"the first neither '.' nor a space, got {name[:100]!r}"
                )
        if self.victims is not None and self.victims > self.models:
            raise ValueError(f"victims: must be at most the {self.models} models, got {self.victims}")
        if self.shadows is not None and self.shadows >= self.models:
            raise ValueError(f"shadows: must be at most {self.models - 1}, all other models, got {self.shadows}")
        must_be_buildable(self._plugins())
        return self

    def _plugins(self) -> list[tuple[str, Kind, Plugin]]:
        found: list[tuple[str, Kind, Plugin]] = [
            ("model", "models", self.model),
            ("pool.data", "datasets", self.pool.data),
            ("downstream.data", "datasets", self.downstream.data),
        ]
        return [*found, *((f"attacks.{n}", "pretraining_attacks", one) for n, one in enumerate(self.attacks))]

    def pretraining_key(self, model: int) -> str:
        """Return a hash of everything that decides what model number `model` is before it is finetuned."""
        decides = (self.seed, model, self.standardized, _plain(self.pretraining), self._of(self.pool))
        return _digest("pretrained", self.model.resolved("models"), decides)

    def answers_key(self, model: int, finetuning: str) -> str:
        """Return a hash of everything that decides what the finetuned model number `model` answers."""
        asked = (self.points, self.queries.augmented)
        decides = (self._of(self.downstream), _plain(self.finetunings[finetuning]), asked)
        return _digest("answers", self.pretraining_key(model), decides)

    def _of(self, source: Source) -> Any:
        data = {key: value for key, value in source.data.resolved("datasets").items() if key not in _PLACE}
        return {**_plain(source), "data": data}


def _plain(model: BaseModel) -> Mapping[str, Any]:
    return model.model_dump(mode="json")


def _digest(*decides: object) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
