"""The audit of a model: how its table, its verdict and its JSON are made."""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaleak.attacks.layerwise.audit import NOISE, Audit, audit
from metaleak.clients.models import Model
from metaleak.clients.randomness import keyed_generator
from metaleak.deploy.audits.layer_inversions import image_of, inversions
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import changed
from metaleak.deploy.errors import WrongUsage
from metaleak.deploy.printable import printable
from metaleak.deploy.report.layer_page import write_layer_page
from metaleak.deploy.terminal import Grid, say, show

_LARGEST_INPUT = 1_000_000
"""Numbers in an example that are taken at most."""


@dataclass(frozen=True)
class AskedPage:
    """A page that is to be written to `path`: the inversion of the image in the file `image`, of class `label`."""

    path: Path
    image: Path
    label: int = 0


def audit_command(
    name: str,
    changes: tuple[str, ...],
    input_text: str,
    ways: int | None,
    seed: int,
    as_json: bool,
    page: AskedPage | None = None,
) -> None:
    """Audit the model called `name` for inputs like "3x32x32", and print a table or one JSON document.

    With `page` also write the inversion of an image, layer by layer.
    """
    shape = input_shape(input_text)
    plain: dict[str, Any] = {"model": {"name": name}}
    for change in changes:
        plain = changed(plain, f"model.{change}")
    try:
        model = Plugin(**plain["model"]).built("models")
        parameters = model.initialize(shape, ways or _logits_of(model, shape), keyed_generator("audit", seed))
        image = None if page is None else image_of(page.image, shape)
        found = audit(model, parameters, shape, seed)
        made = () if page is None or image is None else inversions(model, parameters, image, page.label, found)
    except ValueError as error:
        raise WrongUsage(f"audit of {name} for inputs {input_text}: {error}") from None
    if page is not None:
        facts = {"Input": input_text, "Image": str(page.image), "Label": str(page.label), "Seed": str(seed)}
        write_layer_page(page.path, printable(name), list(printable(facts).items()), verdict(found), made)
    if as_json:
        print(json.dumps(plain_audit(found)))
        return
    show(layer_table(found))
    for line in verdict(found):
        say(line)


def input_shape(text: str) -> tuple[int, int, int]:
    """Return `(C, H, W)` of a text like "3x32x32"; raises `WrongUsage` for another."""
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}x[1-9]\d{0,5}", text):
        raise WrongUsage(f"--input: must be channels x height x width, such as 3x32x32, got {text!r}")
    channels, height, width = (int(part) for part in text.split("x"))
    if channels * height * width > _LARGEST_INPUT:
        raise WrongUsage(f"--input: must have at most {_LARGEST_INPUT} numbers, got {text}")
    return channels, height, width


def plain_audit(found: Audit) -> dict[str, Any]:
    """Return the audit as plain data: a number only where it says what its name says, else `null`."""
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "unknowns": layer.unknowns,
            "from_weight": layer.from_weight,
            "from_gradient": layer.from_gradient,
            "rank": layer.rank if layer.covered != "no" else None,
            "deficit": layer.deficit if layer.covered != "no" else None,
            "contribution": layer.contribution if layer.covered != "no" else None,
            "covered": layer.covered,
            "note": layer.note,
        }
        for layer in found.layers
    ]
    said: dict[str, Any] = printable(
        {
            "layers": layers,
            "c": found.c,
            "c_of_convolutions": found.c_of_convolutions,
            "covered": found.covered,
            "i2f": found.i2f,
            "verdict": verdict(found),
        }
    )
    return said


def layer_table(found: Audit) -> Grid:
    """Return the table layer by layer, for a terminal."""
    rows = []
    for layer in found.layers:
        sign = {"exact": "", "at most": "≤", "no": "("}[layer.covered]
        end = ")" if layer.covered == "no" else ""
        least = {"exact": "", "at most": "≥", "no": "("}[layer.covered]
        rows.append(
            [
                str(printable(layer.name)),
                str(layer.unknowns),
                _number(layer.from_weight),
                _number(layer.from_gradient),
                "–" if layer.rank is None else f"{sign}{layer.rank}{end}",
                "–" if layer.deficit is None else f"{least}{layer.deficit}{end}",
                "–" if layer.contribution is None else f"{sign}{layer.contribution:.6g}{end}",
            ]
        )
    columns = ["layer", "unknowns", "weight", "gradient", "rank", "deficit", "term"]
    return Grid("What weight and gradient of each layer say of its input", columns, rows)


def verdict(found: Audit) -> list[str]:
    """Return in plain words what the numbers say, and what they do not."""
    lines = []
    notes: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.note:
            notes.setdefault(layer.note, []).append(layer.name)
    lines += [f"{', '.join(names)}: {note}." for note, names in notes.items()]
    covered = [one for one in found.layers if one.covered != "no" and one.contribution is not None]
    first_missing = next((one for one in covered if one.deficit), None)
    if found.before:
        lines.append(f"Not covered: the example passes {' and '.join(found.before)} before the first layer.")
    if found.c_of_convolutions is None:
        lines.append("c(M) is not known: the rank of a convolution could not be found.")
    elif found.covered == "no":
        lines.append(
            f"c(M) does not cover this network; of its convolutions alone it would be {found.c_of_convolutions:.6g}."
        )
    elif found.covered == "at most":
        lines.append(
            f"c(M) is at most {found.c_of_convolutions:.6g}: each unit that an activation switches off takes a "
            "constraint away, and which are off depends on the image."
        )
    else:
        lines.append(f"c(M) = {found.c_of_convolutions:.6g}; 0 is the least safe, more negative is safer.")
    if found.covered == "exact" and first_missing is None:
        lines.append("Every layer's input is determined: the gradient of one example gives it away exactly (R-GAP).")
    elif first_missing is not None:
        lines.append(
            f"{first_missing.name} lacks {first_missing.deficit} of {first_missing.unknowns} constraints: from there "
            "on towards the image, an inversion must guess."
        )
    if found.layers and found.layers[0].kind == "linear" and not found.before:
        lines.append(
            "The first layer is dense: its gradient is a sum of the examples themselves, also for batches (spear)."
        )
    if found.i2f is not None:
        lines.append(
            f"I2F: to first order, noise of {NOISE:.0%} of the gradient moves the image by at least {found.i2f:.2g} "
            "a pixel (root mean square; random image and start) for an inversion that matches the noisy gradient."
        )
    else:
        lines.append("I2F could not be computed for this network.")
    return [str(printable(line)) for line in lines]


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _logits_of(model: Model, shape: tuple[int, ...]) -> int:
    """Return how many logits a module makes by itself, and 5 for models that are told."""
    module = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        return 5
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            logits = copy.deepcopy(module)(torch.zeros(2, *shape))
        except Exception as error:  # noqa: BLE001 (a module of the user's own may raise anything)
            raise ValueError(f"the module cannot take such an input: {error}") from None
    return int(logits.shape[-1])
