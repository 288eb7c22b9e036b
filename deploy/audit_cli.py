"""The command line: `metaleak audit model | defense`."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from metaleak.deploy.cli_options import AsJson, Changes
from metaleak.deploy.errors import WrongUsage

_DEFENSES = sorted({point.name for point in entry_points(group="metaleak.defenses")})

audits = typer.Typer(
    no_args_is_help=True,
    help="Analyze what a network's gradient reveals, or test a defense's guarantee; nothing is simulated.",
)


@audits.command("model")
def audit_model(
    model: Annotated[str, typer.Argument(help="A model by name, or `module:factory` of your own.", metavar="MODEL")],
    changes: Changes = None,
    shape: Annotated[
        str, typer.Option("--input", metavar="CxHxW", help="The shape of an example.", show_default=True)
    ] = "3x32x32",
    ways: Annotated[
        int | None,
        typer.Option("--ways", min=1, max=10_000, help="Number of classes; default: a module's own, or else 5."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the parameters, and of the image that I2F is computed at.")
    ] = 0,
    image: Annotated[Path | None, typer.Option("--image", help="A file with the image to invert.")] = None,
    label: Annotated[int, typer.Option("--label", min=0, help="The image's class, from 0 on.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write a page that shows the image as rebuilt after each layer, beside the true one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show layer by layer what a network's gradient reveals, and how safe its architecture is.

    Example: `metaleak audit model lenet --input 1x28x28`

    A network of your own: `metaleak audit model my_networks:Net`

    With the inversion of an image: `metaleak audit model lenet --input 1x28x28 --image shoe.png --report page.html`
    """
    from metaleak.deploy.audits.model_command import AskedPage, audit_command

    if (image is None) != (report is None):
        raise WrongUsage("--image and --report: must be given together, the image to invert and the page to write")
    page = None if image is None or report is None else AskedPage(report, image, label)
    audit_command(model, tuple(changes or ()), shape, ways, seed, as_json, page)


@audits.command(epilog=f"Defenses: {', '.join(_DEFENSES)}, or `module:Name` of your own.")
def defense(
    name: Annotated[str, typer.Argument(help="A defense with a guarantee, by name.", metavar="DEFENSE")],
    changes: Changes = None,
    rule: Annotated[str, typer.Option("--rule", help="For a record-level defense: the learner's rule.")] = "fomaml",
    asks: Annotated[
        Literal["query", "support"],
        typer.Option("--asks", help="For a record-level defense: the set whose examples are tested."),
    ] = "query",
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, help="Number of rounds in which a learner takes part.")
    ] = 1,
    trials: Annotated[
        int, typer.Option("--trials", help="Number of simulated learners, or with --one-run of canaries.")
    ] = 10_000,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of the lower bounds.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the trials.")] = 0,
    one_run: Annotated[
        bool, typer.Option("--one-run", help="Test with many canaries in one run, in seconds instead of minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the epsilon that a defense promises with the lower bound that a worst-case adversary proves.

    No data are needed: the adversary chooses the inputs, and the learner's own code computes what is sent for them.
    `--set` changes a setting of the defense (`--set epsilon=8`) or of the rule (`--set rule.inner_steps=3`). The exit
    code is 1 when more is proven than promised.

    Example: `metaleak audit defense gaussian --set clip=1 --set epsilon=8 --rounds 2`
    """
    from metaleak.deploy.audits.defense_command import audit_defense_command

    settings = {"trials": trials, "confidence": confidence, "seed": seed}
    audit_defense_command(name, tuple(changes or ()), rule, asks, rounds, settings, one_run, as_json)
