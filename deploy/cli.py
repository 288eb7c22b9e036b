"""The command line: `metaleak init | simulate | attack | benchmark | pretraining | report | audit`."""

import inspect
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperGroup
from typer.main import get_command
from typer.models import ParameterInfo

from metaleak.deploy.audit_cli import audits
from metaleak.deploy.cli_options import AsJson, Changes, Wide
from metaleak.deploy.engines.interruption import interruptible
from metaleak.deploy.errors import Interrupted, WrongUsage, one_line
from metaleak.deploy.terminal import say

_ATTACKS = sorted({point.name for point in entry_points(group="metaleak.attacks")})

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Simulate federated meta-learning, attack what the server sees, and measure what gradients leak.\n\n"
    "Example: `metaleak init && metaleak simulate experiment.yaml && metaleak attack runs/experiment query`",
)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The folder of data sets; default: the variable METALEAK_DATA."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Allow the data set to be fetched from its publisher when missing.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run code that the run directory names (module:Name). Use it only for runs that you made, or whose "
        "author you trust enough to run a script of theirs.",
    ),
]
app.add_typer(audits, name="audit")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"metaleak {version('metaleak')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options of all commands; `main` handles `--debug` itself."""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("experiment.yaml"),
) -> None:
    """Write a commented experiment file.

    Example: `metaleak init my-experiment.yaml`
    """
    from metaleak.deploy.commands import write_template

    write_template(file)
    say(f"wrote {file}; next: metaleak simulate {file}")


@app.command()
def simulate(
    file: Annotated[Path | None, typer.Argument(help="The experiment file.")] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; default `runs/<name>`.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Resume this run after its last round, instead of a file."),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Run on this Ray cluster: auto, or HOST:PORT of its head.")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Simulate the experiment and record what the server sees.

    Example: `metaleak simulate experiment.yaml --set rounds=50 --out runs/first`

    After a kill: `metaleak simulate --resume runs/first`
    """
    from metaleak.deploy.commands import simulate_command

    if (file is None) == (resume is None) or (resume is not None and out is not None):
        raise typer.BadParameter("give either an experiment file (with --out) or --resume RUN")
    asked = _with_data(changes, data_dir, download)
    if ray_address is not None:
        asked = (*asked, f"engine.ray_address={ray_address}")
    simulate_command(file, asked, out, resume, as_json, trust)


@app.command(epilog=f"Attacks: {', '.join(_ATTACKS)}, or `module:Name` of your own.")
def attack(
    run: Annotated[Path, typer.Argument(help="A run directory, or with --app the record of any Flower app.")],
    name: Annotated[str, typer.Argument(help="An attack by name.", metavar="ATTACK")],
    changes: Changes = None,
    result: Annotated[str | None, typer.Option("--as", help="Name of the result; default: the attack's.")] = None,
    app_file: Annotated[
        Path | None, typer.Option("--app", help="The file that states what the adversary knows of a Flower app.")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    trust: Trust = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Attack a run's record: tell which examples were in learners' sets, or rebuild them.

    `--set` changes a setting of the attack (`--set iterations=100`), of the targets (`--set targets.round=last`) or
    of the engine (`--set engine.longest_hours=48`).

    Example: `metaleak attack runs/first support --set knows=other --as support-query-known`

    The record of another Flower app: `metaleak attack runs/mine/record span --app app.yaml`
    """
    from metaleak.deploy.commands import app_attack_command, attack_command

    if app_file is not None:
        app_attack_command(run, name, tuple(changes or ()), app_file, data_dir, result, as_json)
        return
    attack_command(
        run, name, tuple(changes or ()), _with_data(None, data_dir, download), result, as_json, trust, wide
    )


@app.command()
def benchmark(
    file: Annotated[Path, typer.Argument(help="The suite file.")],
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="The suite directory; default `runs/<name>`.")] = None,
    data_dir: DataDir = None,
    download: Download = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Run a grid of experiments and attacks, or of pretraining studies. A second call runs only what is missing.

    Example: `metaleak benchmark deploy/experiments/demo.yaml --out runs/demo`
    """
    from metaleak.deploy.commands import benchmark_command

    benchmark_command(file, _with_data(changes, data_dir, download), out, as_json, wide)


@app.command()
def pretraining(
    file: Annotated[Path, typer.Argument(help="The study file.")],
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", help="The study's directory; default `runs/<file>`.")] = None,
    victim: Annotated[
        str | None, typer.Option("--victim", metavar="URL", help="A released model to attack over HTTP.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Train in this process, without Ray.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what finetuned models reveal about the examples that they were pretrained on.

    Models are pretrained on random halves of a pool, finetuned, and attacked through their predictions. A second call
    trains only the models that are missing.

    Example: `metaleak pretraining deploy/experiments/pretraining-cifar10.yaml --out runs/pretraining`
    """
    from metaleak.deploy.pretraining.command import study_command

    study_command(file, tuple(changes or ()), out, victim, here, as_json)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A run or suite directory.", metavar="RUN_OR_SUITE")],
    out: Annotated[Path | None, typer.Option("--out", help="The file; default RUN_OR_SUITE/report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a self-contained HTML report.

    Example: `metaleak report runs/demo`
    """
    from metaleak.deploy.commands import report_command

    report_command(path, out, as_json)


def _with_data(changes: list[str] | None, data_dir: Path | None, download: bool) -> tuple[str, ...]:
    extra = []
    if data_dir is not None:
        extra.append(f"data.data_dir={data_dir}")
    if download:
        extra.append("data.download=true")
    return (*(changes or ()), *extra)


def command_line() -> Any:
    """Return the click group of all commands, with the help of arguments, which typer 0.20 loses with click 8.5."""
    built = get_command(app)
    waiting: list[Any] = [built]
    while waiting:
        command = waiting.pop()
        waiting += command.commands.values() if isinstance(command, TyperGroup) else ()
        signature = inspect.signature(command.callback or (lambda: None))
        for parameter in command.params:
            if isinstance(parameter, TyperArgument):
                written = getattr(signature.parameters[str(parameter.name)].annotation, "__metadata__", ())
                parameter.help = next((one.help for one in written if isinstance(one, ParameterInfo)), None)
    return built


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C or SIGTERM)."""
    given = sys.argv[1:] if arguments is None else arguments
    # The option may be anywhere, so it is removed before the commands parse theirs.
    rest = [argument for argument in given if argument != "--debug"]
    # So that a user's own `module:Name` is found; last, so that no file in this folder shadows a library.
    sys.path.append(str(Path.cwd()))
    sys.exit(_exit_code(lambda: command_line()(rest, standalone_mode=True), debug=len(rest) < len(given)))


def _exit_code(command: Callable[[], object], debug: bool) -> int:
    try:
        # typer would turn Python's own KeyboardInterrupt into exit code 1; `Interrupted` passes through it.
        with interruptible(_raise_interrupted):
            command()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except (KeyboardInterrupt, Interrupted) as interruption:
        say(f"metaleak: {interruption}" if str(interruption) else "metaleak: interrupted", error=True)
        return 130
    except Exception as error:
        if debug:
            raise
        say(f"metaleak: {one_line(error)}", error=True)
        return 2 if isinstance(error, WrongUsage) else 1
    return 0


def _raise_interrupted() -> None:
    raise Interrupted("interrupted")
