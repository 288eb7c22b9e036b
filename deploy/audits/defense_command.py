"""What `metaleak audit` does: progress while it asks, a line or a JSON document when it is done."""

import json
from dataclasses import asdict
from typing import Any

import typer
from pydantic import ValidationError

from metaleak.defenses import Defense, ExampleSet
from metaleak.deploy.audits.audit import Trials, audit
from metaleak.deploy.audits.canaries import canary_for
from metaleak.deploy.config.plugins import Kind, Plugin, first_problem
from metaleak.deploy.config.reading import changed
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.progress import shown_progress

_MOST_SENT = 100_000_000
"""Messages of one audit: 8 bytes each are kept."""


def audit_defense_command(
    name: str,
    changes: tuple[str, ...],
    rule: str,
    asks: ExampleSet,
    rounds: int,
    trials: dict[str, Any],
    as_json: bool,
) -> None:
    """Audit the defense called `name` after `changes`, and print what it promises beside what is proven of it.

    Raises `PrivacyViolation` after that when more is proven than it promises, and `WrongUsage` for what cannot be
    audited.
    """
    plain: dict[str, Any] = {"defenses": [{"name": name}], "rule": {"name": rule}}
    for change in changes:
        plain = changed(plain, change if change.startswith("rule.") else f"defenses.0.{change}")
    try:
        settings = Trials(**trials)
        defense: Defense = _built("defenses", plain["defenses"][0])
        canary, delta = canary_for(defense, _built("rules", plain["rule"]), asks, rounds, settings.seed)
        if settings.trials * rounds > _MOST_SENT:
            raise ValueError(f"{settings.trials} trials of {rounds} rounds are more than {_MOST_SENT} messages")
    except ValidationError as error:
        raise WrongUsage(f"audit: {first_problem(error, Trials)}") from None
    except ValueError as error:
        raise WrongUsage(f"audit defense {name}: {error}") from None
    with shown_progress() as progress:
        bar = progress.add_task(f"audit of {name}", total=settings.trials)
        found = audit(canary, delta, settings, lambda done, total: progress.update(bar, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps({"defense": plain["defenses"][0], "asks": asks, **asdict(found)}))
    else:
        part = f" ({found.lower_bound / found.accounted:.0%})" if found.accounted else ""
        typer.echo(
            f"{name}: accounted epsilon {found.accounted:.3f} over {rounds} {'round' if rounds == 1 else 'rounds'}, "
            f"proven {found.lower_bound:.3f}{part}, by single operating points "
            f"{found.any_mechanism:.3f}; {found.confidence:.0%} confidence, delta {delta:g}, {found.trials} trials"
        )
    found.check()


def _built(kind: Kind, plain: dict[str, Any]) -> Any:
    return Plugin(**plain).built(kind)
