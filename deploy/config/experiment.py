"""An experiment: everything that decides what a simulation does, checked before anything starts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaleak.attacks.threat_model import ThreatModel
from metaleak.clients.device import Device
from metaleak.clients.faults import Faults
from metaleak.clients.federation import Federation
from metaleak.clients.partition import Partition, TaskShape
from metaleak.clients.rules import reads_means
from metaleak.clients.sharing import EVERYTHING, Patterns
from metaleak.defenses import Accounted, Defense, ExampleMechanism, SharesNoise, adapting
from metaleak.deploy.config.plugins import Kind, Plugin, must_be_buildable
from metaleak.deploy.config.releases import most_sampled
from metaleak.server.learning.meta_learner import sample_size
from metaleak.server.learning.optimizer import OuterOptimizer

_STRICT = ConfigDict(frozen=True, extra="forbid")
MAX_ROUNDS = 200_000
"""The most rounds of a run."""

_ABSENT = object()
_LATER: Mapping[str, Mapping[str, Any]] = {
    "task": {"episodes_per_message": 1},
    "partition": {"most_examples_per_class": None, "dirichlet": None, "overlap": 0.0},
}
"""Settings of later versions with the values that earlier versions imply, so that stored results stay valid."""

_NOT_SIMULATED = ("name", "attacks", "targets", "threat_model", "engine")
KINDS: Mapping[str, Kind] = {
    "data": "datasets",
    "model": "models",
    "rule": "rules",
    "defenses": "defenses",
    "attacks": "attacks",
}
"""The keys of an experiment that name plug-ins."""

SEVERAL = ("defenses", "attacks")
"""The keys among them that list several plug-ins."""

DEFAULT_NAMES: Mapping[str, str] = {"data": "mnist-5k", "model": "mlp", "rule": "maml"}
"""The keys that name one plug-in, with their defaults."""


class ServerSettings(BaseModel):
    """How the meta-learner trains: in each round it samples a `fraction` of the learners and takes one outer step.

    `start_from` is a safetensors file with the parameters to start from, such as another run's. A learner's gradient
    is refused when its L2 norm, over all parameters together, is larger than `largest_norm`.
    """

    model_config = _STRICT

    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 30
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: OuterOptimizer = OuterOptimizer()
    start_from: Path | None = None
    largest_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class EvaluationSettings(BaseModel):
    """How adapted accuracy is measured: on `tasks` held-out tasks, after every `every` rounds and at the end.

    `queries` is the number of query images per class; `inner_steps` defaults to the rule's own.
    """

    model_config = _STRICT

    every: Annotated[int, Field(ge=1)] = 10
    tasks: Annotated[int, Field(ge=2, le=100_000)] = 100
    queries: Annotated[int, Field(ge=1, le=1000)] = 10
    inner_steps: Annotated[int, Field(ge=1, le=100)] | None = None


class TargetSettings(BaseModel):
    """The examples that an attack is asked about, and the recorded rounds that are attacked.

    At most `members` examples that learners hold are drawn, and at most `non_members` of the same classes that no
    learner holds. With `rounds` above 1 that many rounds are attacked together, from `round` on or up to the last, by
    attacks that can use several; a member is then an example that a learner held in any of these in which it
    answered. An attack that reconstructs rebuilds the sets of at most `learners` learners in the first of these
    rounds; if it only reconstructs, all targets belong to these learners. `lpips`: whether LPIPS of images is
    measured, too (`null`: if the folder of data sets has its weights). `audit`: the trials of an audit of the
    defense's guarantee, which is made with each attack (`null`: no audit).
    """

    model_config = _STRICT
    audit: Annotated[int, Field(ge=100, le=1_000_000)] | None = None
    members: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    non_members: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    learners: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    lpips: bool | None = None
    round: Annotated[int, Field(ge=1)] | Literal["first", "last"] = "first"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 1


class RecordSettings(BaseModel):
    """How many `rounds` the curious server records, from the first on; `null` records all, 0 none."""

    model_config = _STRICT

    rounds: Annotated[int, Field(ge=0)] | None = None


class EngineSettings(BaseModel):
    """How the simulation is executed, which changes at most the last bits of its numbers.

    `actors`: the number of Ray actors (`null`: one per core; on a cluster always one per CPU). `learners_per_node`:
    how many learners a Flower node hosts; with `auto` any node computes for any learner, which is fastest. `chunk`:
    how many learners are computed at once (`auto`: measured, then kept for the run). `device`: where actors and
    attacks compute; `auto` distributes the GPUs, if there are any. `timeout`: seconds to wait for a round's replies.
    `ray_address`: an existing Ray cluster, or `auto`. An attack that would take more than `longest_hours`, as
    estimated from its first steps, is refused.
    """

    model_config = _STRICT

    actors: Annotated[int, Field(ge=1, le=4096)] | None = None
    learners_per_node: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    chunk: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    device: Device = "auto"
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    ray_address: str | None = None
    longest_hours: Annotated[float, Field(gt=0)] = 24.0


class Experiment(BaseModel):
    """One experiment: a federation, its training, its record, and the attacks on it.

    `seed` decides all random numbers. `shares` are patterns of the names of the parameters that learners share, such
    as `layer1.*`; the others are in no message and never change.
    """

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=200)] = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Plugin = Plugin(name=DEFAULT_NAMES["data"])
    task: TaskShape = TaskShape()
    partition: Partition = Partition()
    model: Plugin = Plugin(name=DEFAULT_NAMES["model"])
    rule: Plugin = Plugin(name=DEFAULT_NAMES["rule"])
    shares: Annotated[Patterns, Field(min_length=1)] = EVERYTHING
    defenses: tuple[Plugin, ...] = ()
    faults: Faults = Faults()
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    record: RecordSettings = RecordSettings()
    engine: EngineSettings = EngineSettings()
    attacks: tuple[Plugin, ...] = (Plugin(name="query"), Plugin(name="support"))
    targets: TargetSettings = TargetSettings()
    threat_model: ThreatModel = ThreatModel()

    @model_validator(mode="after")
    def _everything_can_be_built(self) -> "Experiment":
        must_be_buildable(self._plugins())
        aggregated = any(defense.place == "aggregate" for defense in self.built_defenses())
        if self.server.largest_norm is not None and aggregated:
            raise ValueError("server.largest_norm: the server sees no learner's own norm under secure aggregation")
        if self.attacks and self.record.rounds == 0:
            raise ValueError("record.rounds: must be at least 1 for the attacks to have a record, got 0")
        recorded = self.recorded_rounds()
        if self.attacks and isinstance(self.targets.round, int) and self.targets.round > recorded:
            raise ValueError(
                f"targets.round: must be one of the {recorded} recorded rounds, got {self.targets.round}"
            )
        return self

    def _plugins(self) -> Iterable[tuple[str, Kind, Plugin]]:
        for key, kind in KINDS.items():
            if key in SEVERAL:
                yield from ((f"{key}.{place}", kind, plugin) for place, plugin in enumerate(getattr(self, key)))
            else:
                yield key, kind, getattr(self, key)

    def federation(self) -> Federation:
        """Return the experiment's learners, with nothing loaded yet."""
        return Federation(
            seed=self.seed,
            data=self.data.built("datasets"),
            task=self.task,
            partition=self.partition,
            model=self.model.built("models"),
            rule=self.rule.built("rules"),
            defenses=self.built_defenses(),
            faults=self.faults,
            shares=self.shares,
        )

    def recorded_rounds(self) -> int:
        """Return of how many rounds there is a record once all are done."""
        return self.server.rounds if self.record.rounds is None else min(self.server.rounds, self.record.rounds)

    def releases(self, rounds: int | None = None) -> int:
        """Return the most of the first `rounds` (default: all) in which any one learner is sampled, or a bound."""
        rounds = self.server.rounds if rounds is None else rounds
        return most_sampled(self.partition.learners, self.server.fraction, self.seed, rounds)

    def built_defenses(self) -> tuple[Defense, ...]:
        """Return the defenses, those with an accounted guarantee over all that a learner may release."""
        built = [defense.built("defenses") for defense in self.defenses]
        acting = [defense.place for defense in built]
        if acting.count("example") + ("inner" in acting and "example" in acting) > 1:
            raise ValueError(
                "defenses: at most one may be of the place 'example', and then none of the place 'inner'"
            )
        if "example" in acting and any(
            defense.place in ("support", "query") and not getattr(defense, "acts_on_each_example", False)
            for defense in built
        ):
            raise ValueError(
                "defenses: with a defense of the place 'example' only noise may act on the support and query sets; "
                "others could let one example change what all others contribute"
            )
        adapts = adapting(built)
        if adapts is not None and any(
            one is not adapts and (one.place == "shared" or adapting([one]) is not None) for one in built
        ):
            raise ValueError("defenses: with an adaptive clipping norm no other defense may act on what is sent")
        if "example" in acting and self.task.episodes_per_message > 1:
            raise ValueError(
                "defenses: a defense of the place 'example' is accounted for one episode per message, "
                f"task.episodes_per_message is {self.task.episodes_per_message}"
            )
        if self.partition.overlap > 0 and any(isinstance(defense, Accounted) for defense in built):
            # An image of two learners changes two messages, which the epsilon of one learner does not bound.
            raise ValueError(
                "defenses: a guarantee is accounted for images that only one learner holds, so partition.overlap "
                f"must be 0, got {self.partition.overlap:g}"
            )
        readings = reads_means(self.rule.built("rules")).readings if "example" in acting else {}
        for place, defense in enumerate(built):
            try:
                if isinstance(defense, ExampleMechanism):
                    defense = defense.for_readings(readings)
                if isinstance(defense, SharesNoise):
                    if "aggregate" not in acting:
                        raise ValueError("name: its guarantee is about the sum of a round; add secure-aggregation")
                    if "shared" in (acting[place + 1 :] if acting[place] == "shared" else acting):
                        raise ValueError("name: no defense may change a message after noise is added to it")
                    defense = defense.for_learners(self._answering())
                if isinstance(defense, Accounted):
                    defense = defense.for_releases(self.releases())
            except ValueError as error:
                raise ValueError(f"defenses.{place}.{error}") from None
            built[place] = defense
        return tuple(built)

    def _answering(self) -> int:
        """Return how many learners answer in every round; raises `ValueError` where faults leave that open."""
        if self.faults != Faults():
            raise ValueError("least_learners: with faults it is not certain how many learners answer in every round")
        return sample_size(self.partition.learners, self.server.fraction)

    def resolved(self) -> dict[str, Any]:
        """Return the experiment as plain data with every default written out; `Experiment(**resolved)` is equal."""
        plain = self.model_dump(mode="json")
        for key in DEFAULT_NAMES:
            plain[key] = getattr(self, key).resolved(KINDS[key])
        for key in SEVERAL:
            plain[key] = [one.resolved(KINDS[key]) for one in getattr(self, key)]
        return plain

    def simulation_key(self) -> str:
        """Return a hash of everything that decides what a simulation computes; see `simulation_key`."""
        return simulation_key(self.resolved())


def simulation_key(resolved: Mapping[str, Any]) -> str:
    """Return a hash of everything in a resolved experiment that decides what a simulation computes.

    Attacks, targets, the threat model, the name, the engine, and where the data lie on this machine do not count.
    Nothing is built.
    """
    plain = {key: value for key, value in resolved.items() if key not in _NOT_SIMULATED}
    if plain.get("shares") == list(EVERYTHING):
        # Left out at its earlier value, so that the hashes of stored results stay the same.
        del plain["shares"]
    for part, settings in _LATER.items():
        if isinstance(given := plain.get(part), Mapping):
            plain[part] = {key: value for key, value in given.items() if settings.get(key, _ABSENT) != value}
    if isinstance(data := plain.get("data"), Mapping):
        plain["data"] = {key: value for key, value in data.items() if key not in ("data_dir", "download")}
    if isinstance(server := plain.get("server"), Mapping):
        # Without the limit nothing depends on it.
        server = {key: value for key, value in server.items() if (key, value) != ("largest_norm", None)}
        plain["server"] = server
        start = server.get("start_from")
        if isinstance(start, str) and Path(start).is_file():
            with open(start, "rb") as file:
                plain["server"] = {**server, "start_from": hashlib.file_digest(file, "sha256").hexdigest()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
