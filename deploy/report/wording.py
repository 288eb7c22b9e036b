"""How a report words numbers: rates with their intervals, and false-positive rates."""

import re

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import Measure
from metaleak.attacks.evaluation.roc import non_members_needed


def rate_text(estimate: Estimate | Measure, percent: bool = False) -> tuple[str, str]:
    """Return a rate and its interval: ("0.993", "0.988–0.997"), or in per cent ("99.3 %", "98.8–99.7").

    Other measures, such as decibels, have one decimal place where they reach 10.
    """
    large = max(abs(estimate.low), abs(estimate.high)) >= 10
    factor, digits, unit = (100, 1, " %") if percent else (1, 1 if large else 3, "")
    low, high = (f"{bound * factor:.{digits}f}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value * factor:.{digits}f}{unit}", f"{low}–{high}"


def measure_text(measure: Measure) -> str:
    """Return a measure with its name and interval: "PSNR 23.1, 22.0–24.0"."""
    value, interval = rate_text(measure)
    return f"{measure.name} {value}, {interval}"


def unbroken(text: str) -> str:
    """Return `text` with a hyphen in numbers such as 1e-05 at which no line ends."""
    return re.sub(r"(?<=\de)-(?=\d)", "\N{NON-BREAKING HYPHEN}", text)


def needs_text(level: str) -> str:
    """Return what to print where there are too few non-members for the false-positive rate `level`."""
    return f"needs ≥ {non_members_needed(float(level)):,} non-members".replace(",", " ")


def level_text(level: str) -> str:
    """Return a false-positive rate in per cent: "0.001" is "0.1 %"."""
    return f"{float(level) * 100:g} %"
