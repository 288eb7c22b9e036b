"""Running an experiment's simulation: on Ray actors or in this process, from the start or from its last round."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metaleak.clients.app import client_app
from metaleak.deploy.config.experiment import Experiment, simulation_key
from metaleak.deploy.engines.local_engine import LocalGrid
from metaleak.deploy.engines.ray_engine import RayEngine
from metaleak.deploy.errors import Interrupted
from metaleak.deploy.simulate.rounds import OnRound
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.deploy.simulate.simulation import Simulation
from metaleak.deploy.simulate.trial import try_out
from metaleak.server import ArrivingReplies


def simulate(experiment: Experiment, out: Path, on_round: OnRound | None = None) -> RunDirectory:
    """Simulate `experiment` on Ray actors into the new directory `out` and return the run; see `Simulation`."""
    RunDirectory.must_be_free(out)
    return simulated_on_ray(experiment, out, on_round)


def simulate_here(experiment: Experiment, out: Path) -> RunDirectory:
    """Simulate `experiment` in this process into `out` and return the run.

    An unfinished run in `out` is resumed, and a finished one is returned as it is; see `resume`.
    """
    if not (out / "experiment.yaml").exists():
        return _in_this_process(Simulation(experiment, out))
    run = RunDirectory.open(out)
    # The stored experiment is compared as plain data: it may name code, and only the caller's may be run.
    _must_go_on_as_it_began(run, run.stored(), experiment)
    return run if run.done else _in_this_process(Simulation(experiment, out, resume=True))


def resume(
    out: Path,
    changes: Sequence[str] = (),
    on_round: OnRound | None = None,
    trust: bool = False,
) -> RunDirectory:
    """Resume the run in `out` after its last round, and return it; a finished run is returned as it is.

    The final parameters and the record are those of a run without an interruption, bit for bit. `changes` may concern
    where the simulation runs (`engine.` and the place of the data), but nothing that decides what is computed.
    Without `trust` the run goes on here, or on the cluster that `changes` name, and not on the one that the run
    names. Raises `ValueError` for other changes, and for a run that names code unless you `trust` it, see
    `RunDirectory.experiment`.
    """
    run = RunDirectory.open(out)
    # Joining a stranger's cluster would mean running the code that it sends.
    changes = tuple(changes) if trust else ("engine.ray_address=null", *changes)
    experiment = run.experiment(changes, trust)
    _must_go_on_as_it_began(run, run.experiment(trust=trust).resolved(), experiment)
    if run.done:
        return run
    return simulated_on_ray(experiment, run.path, on_round, resume=True)


def simulated_on_ray(
    experiment: Experiment, out: Path, on_round: OnRound | None, resume: bool = False
) -> RunDirectory:
    """Simulate `experiment` to the end on Ray actors, into `out`; return the run."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Meanwhile Ray starts, which takes longer and is mostly waiting. Its processes die with the thread that
        # started them, so it is the trial that runs in another thread.
        tried = beside.submit(try_out, experiment.federation())
        try:
            engine = RayEngine(experiment.engine, experiment.partition.learners)
        except Exception:
            # An error in the experiment is reported before one of Ray's start.
            tried.result()
            raise
    try:
        tried.result()
        simulation = Simulation(experiment, out, on_round, resume)
    except BaseException:
        engine.close()
        raise
    return _on_ray(simulation, engine)


def _on_ray(simulation: Simulation, engine: RayEngine) -> RunDirectory:
    """Simulate to the end on Ray actors; return the run. Raises `Interrupted` on Ctrl-C."""

    def check() -> None:
        engine.check()
        if engine.stopped:
            raise Interrupted("stopped")

    settings, arriving = simulation.experiment.engine, ArrivingReplies(simulation.run.arriving)
    # The actors of a cluster need not see this machine's disk.
    folder = arriving.folder if settings.ray_address is None else None
    # Several messages per actor distribute the rest of a round's work better. A SuperNode, which starts a process for
    # each message, gets one.
    engine.run(
        client_app(simulation.federation, settings.device, folder),
        lambda grid: simulation.serve(grid, check, shares_per_node=2, arriving=arriving),
    )
    if engine.stopped:
        path = simulation.run.path
        raise Interrupted(f"{path}: interrupted; `metaleak simulate --resume {path}` goes on from here")
    return simulation.run


def _in_this_process(simulation: Simulation) -> RunDirectory:
    """Simulate to the end in this process, without Ray; return the run, which differs only in `seconds`."""
    experiment = simulation.experiment
    per_node = experiment.engine.learners_per_node
    nodes = 1 if per_node == "auto" else -(-experiment.partition.learners // per_node)
    return simulation.serve(LocalGrid(client_app(simulation.federation, experiment.engine.device), nodes))


def _must_go_on_as_it_began(run: RunDirectory, before: object, experiment: Experiment) -> None:
    """Raise `ValueError` for an experiment that computes something else than the resolved one `before`."""
    engine = before.get("engine") if isinstance(before, dict) else None
    same = isinstance(engine, dict) and all(
        engine.get(key) == getattr(experiment.engine, key) for key in ("chunk", "learners_per_node", "device")
    )
    if not isinstance(before, dict) or simulation_key(before) != experiment.simulation_key() or not same:
        raise ValueError(
            f"{run.path}: a run goes on as it began; only engine.actors, engine.timeout, engine.ray_address and the "
            "data's place may be changed"
        )
