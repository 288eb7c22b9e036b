"""The command `metaleak audit defense`: a progress bar, then one line or a JSON document."""

import json
from dataclasses import asdict
from typing import Any

import typer
from pydantic import ValidationError

from metaleak.clients.rules import Rule
from metaleak.defenses import Defense, ExampleSet
from metaleak.deploy.audits.audit import Trials, audit
from metaleak.deploy.audits.canaries import canary_for
from metaleak.deploy.audits.one_run import one_run_audit
from metaleak.deploy.config.plugins import Kind, Plugin, first_problem
from metaleak.deploy.config.reading import changed
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.progress import shown_progress
from metaleak.deploy.terminal import say

_MOST_SENT = 100_000_000
"""The most messages of one audit, each of which takes 8 bytes of memory."""


def audit_defense_command(
    name: str,
    changes: tuple[str, ...],
    rule: str,
    asks: ExampleSet,
    rounds: int,
    trials: dict[str, Any],
    one_run: bool,
    as_json: bool,
) -> None:
    """Audit the defense called `name`, with its settings changed by `changes`, and print the result.

    The result is the epsilon that the defense promises beside the one that is proven, by many learners with one
    canary each, or with `one_run` by one run with many canaries.

    Raises `PrivacyViolation`, after printing, when more is proven than promised, and `WrongUsage` for what cannot be
    audited.
    """
    plain: dict[str, Any] = {"defenses": [{"name": name}], "rule": {"name": rule}}
    for change in changes:
        plain = changed(plain, change if change.startswith("rule.") else f"defenses.0.{change}")
    try:
        settings = Trials(**trials)
        defense: Defense = _built("defenses", plain["defenses"][0])
        built: Rule = _built("rules", plain["rule"])
        canary, delta = canary_for(defense, built, asks, rounds, settings.seed)
        if settings.trials * rounds > _MOST_SENT:
            raise ValueError(f"{settings.trials} trials of {rounds} rounds are more than {_MOST_SENT} messages")
        with shown_progress() as progress:
            bar = progress.add_task(f"audit of {name}", total=settings.trials)

            def watch(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)

            if one_run:
                found = one_run_audit(defense, built, asks, rounds, settings, watch)
            else:
                found = audit(canary, delta, settings, watch)
    except ValidationError as error:
        raise WrongUsage(f"audit: {first_problem(error, Trials)}") from None
    except ValueError as error:
        raise WrongUsage(f"audit defense {name}: {error}") from None
    if as_json:
        typer.echo(json.dumps({"defense": plain["defenses"][0], "asks": asks, "one_run": one_run, **asdict(found)}))
    else:
        part = f" ({found.lower_bound / found.accounted:.0%})" if found.accounted else ""
        without = "of any mechanism" if one_run else "by single operating points"
        by_points = f", {without} {found.any_mechanism:.3f}"
        say(
            f"{name}: accounted epsilon {found.accounted:.3f} over {rounds} {'round' if rounds == 1 else 'rounds'}, "
            f"proven {found.lower_bound:.3f}{part}{by_points}; {found.confidence:.0%} confidence, "
            f"delta {delta:g}, {found.trials} {'canaries of one run' if one_run else 'trials'}"
        )
    found.check()


def _built(kind: Kind, plain: dict[str, Any]) -> Any:
    return Plugin(**plain).built(kind)
