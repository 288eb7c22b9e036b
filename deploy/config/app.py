"""The file that describes any Flower app for an attack: what the adversary knows of it, and the candidates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metaleak.deploy.config.plugins import Kind, Plugin, first_problem, must_be_buildable
from metaleak.deploy.config.reading import read_yaml
from metaleak.deploy.errors import WrongUsage
from metaleak.server.record.layout import Holds

_STRICT = ConfigDict(frozen=True, extra="forbid")


class Normalization(BaseModel):
    """How the app normalizes pixels in [0, 1]: one `mean` and one `std` a channel."""

    model_config = _STRICT

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_of_each(self) -> "Normalization":
        if len(self.mean) != len(self.std):
            raise ValueError(f"must have as many mean as std, got {len(self.mean)} and {len(self.std)}")
        return self


class App(BaseModel):
    """What the adversary knows of a Flower app.

    `model` is a `module:factory` of a `torch.nn.Module` that takes images and returns logits. `holds` says what
    replies hold, where the record does not. `rule` is how a client trains, `examples` how many examples it
    typically holds (default: the median of what replies state as `num-examples`). `data` are the images that are
    asked about; `candidates` is a CSV file with a row for each question: an `example` (its place in the data), a
    `learner`, and, where it is known, `member` (1 or 0). Without it every example is asked about for every learner.
    `own` is a CSV file of the examples that are the adversary's own. `round` is the recorded round that is
    attacked.
    """

    model_config = _STRICT

    model: Plugin
    data: Plugin
    rule: Plugin = Plugin(name="fedavg")
    holds: Holds | None = None
    normalize: Normalization | None = None
    examples: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    candidates: Path | None = None
    own: Path | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _everything_can_be_built(self) -> "App":
        must_be_buildable(self._plugins())
        return self

    def _plugins(self) -> Iterator[tuple[str, Kind, Plugin]]:
        yield "model", "models", self.model
        yield "data", "datasets", self.data
        yield "rule", "rules", self.rule


def read_app(path: Path, data_dir: Path | None = None) -> App:
    """Return the app that the YAML file `path` describes; raises `WrongUsage` in one line.

    Paths in it are relative to its folder; a name is short for `{name: ...}`. `data_dir` is where the data lie.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise WrongUsage(f"{path}: must be a mapping of keys to values, got {type(plain).__name__}")
    for key in ("model", "data", "rule"):
        if isinstance(plain.get(key), str):
            plain[key] = {"name": plain[key]}
    if data_dir is not None and isinstance(plain.get("data"), dict):
        plain["data"] = {**plain["data"], "data_dir": str(data_dir)}
    for key in ("candidates", "own"):
        if isinstance(plain.get(key), str):
            plain[key] = path.parent / plain[key]
    try:
        return App.model_validate(plain)
    except ValidationError as error:
        raise WrongUsage(f"{path}: {first_problem(error, App)}") from None
