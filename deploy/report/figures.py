"""Figures as inline SVG that follow the page's colors: the same numbers always give the same bytes."""

import hashlib
import io
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import AUC, Measure
from metaleak.attacks.evaluation.roc import Bools, Floats, roc_curve

SERIES = 8
"""How many colors a figure has; the page's style sheet gives each, `--c0` and on, for light and dark."""

# Colors that stand in for the page's: each is replaced by a CSS variable in the finished SVG.
_INK, _GRID = "#010203", "#010204"
_COLORS = [f"#0102{0xA0 + index:02x}" for index in range(SERIES)]
# Seven shapes against eight colors: 56 series differ, and shapes serve who cannot tell the colors.
_MARKERS = "osD^vPX"
_DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5))]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metaleak",
    "text.parse_math": False,  # A name with a dollar sign is a name.
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True)
class FrontierPoint:
    """A defense at a scale: what it costs (`accuracy`) and what it leaves to the strongest attacker (`leak`).

    `best` when no other point of the figure has both more accuracy and a weaker attacker.
    """

    series: str
    scale: str
    accuracy: Estimate
    leak: Measure
    best: bool


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores `(T,)` of an attack on a run against the truth `member (T,)`; `series` gives the color."""

    label: str
    series: str
    scores: Floats
    member: Bools


def frontier(title: str, points: Sequence[FrontierPoint]) -> Markup:
    """Return what attacks measure against adapted accuracy with 95 % intervals; the best points are joined."""
    best = sorted((point.accuracy.value, point.leak.value) for point in points if point.best)
    measure = points[0].leak
    about = f"the strongest attack's {measure.name} against adapted accuracy"
    with _figure(title, len({point.series for point in points}) + 1, about) as (axes, svg):
        axes.plot(*zip(*best, strict=True), color=_INK, linewidth=1, alpha=0.55, zorder=1, label="best trade-offs")
        for index, series in enumerate(dict.fromkeys(point.series for point in points)):
            own = [point for point in points if point.series == series]
            x, y = ([getattr(point, axis).value for point in own] for axis in ("accuracy", "leak"))
            axes.errorbar(
                x,
                y,
                xerr=_whiskers([point.accuracy for point in own]),
                yerr=_whiskers([point.leak for point in own]),
                color=_COLORS[index % SERIES],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                linestyle="none",
                elinewidth=0.8,
                capsize=2,
                label=_fitting(series),
            )
            for point, across, up in zip(own, x, y, strict=True):
                if point.scale:
                    axes.annotate(point.scale, (across, up), (4, 4), textcoords="offset points", fontsize=7.5,
                                  color=_COLORS[index % SERIES])  # fmt: skip
        axes.set_xlabel("adapted accuracy on held-out tasks (right is better)")
        axes.set_ylabel(
            f"strongest attack's {measure.name} ({'lower' if measure.higher_leaks else 'higher'} is better)"
        )
        if measure.name == AUC:
            axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)))
            axes.annotate("guessing", (0.01, 0.5), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=7.5)  # fmt: skip
            axes.set_ylim(min([0.45, *(point.leak.low - 0.02 for point in points)]), 1.03)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.12)
    return svg()


def log_roc(title: str, curves: Sequence[Curve]) -> Markup:
    """Return ROC curves on logarithmic axes, from 1 / non-members to 1, as steps: TPR at FPR at most x.

    Where no target is accepted yet there is no point; each curve has one class of each kind at least.
    """
    with _figure(title, len(curves) + 1) as (axes, svg):
        left = min(1 / int((~curve.member).sum()) for curve in curves)
        bottom = min(1 / int(curve.member.sum()) for curve in curves)
        colors = {name: index for index, name in enumerate(dict.fromkeys(curve.series for curve in curves))}
        drawn = Counter[str]()
        for curve in curves:
            fpr, tpr = roc_curve(curve.scores, curve.member)
            x = np.geomspace(1 / int((~curve.member).sum()), 1, 161)
            # 1e-12 forgives the rounding of the logarithmic grid: its first point is one false positive.
            y = tpr[np.searchsorted(fpr, x + 1e-12, side="right") - 1]
            color = colors[curve.series]
            axes.plot(x, np.where(y > 0, y, np.nan), drawstyle="steps-post", color=_COLORS[color % SERIES],
                      linestyle=_DASHES[drawn[curve.series] % len(_DASHES)], linewidth=1.5,
                      label=_fitting(curve.label))  # fmt: skip
            drawn[curve.series] += 1
        axes.plot([left, 1], [left, 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 2)), label="guessing")
        axes.set(xscale="log", yscale="log", xlim=(left, 1.08), ylim=(bottom, 1.08))
        for axis, low in ((axes.xaxis, left), (axes.yaxis, bottom)):
            decades = 10.0 ** np.arange(np.floor(np.log10(low)), 1)
            axis.set_major_locator(FixedLocator(decades[decades >= low * 0.999].tolist()))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel("false-positive rate (log)")
        axes.set_ylabel("true-positive rate (log)")
    return svg()


def training_curve(
    about: str,
    title: str,
    ylabel: str,
    rounds: Sequence[int],
    values: Floats,
    band: tuple[Floats, Floats] | None = None,
) -> Markup:
    """Return `values (R,)` over `rounds (R,)` with an optional band `(low (R,), high (R,))`; NaN is a gap.

    `about` says whose curve it is to those who cannot see it. A band means rates, drawn in per cent. More than
    1 000 rounds are averaged in equal stretches.
    """
    stretch = -(-len(rounds) // 1000)
    starts = np.arange(0, len(rounds), stretch)

    def averaged(series: Floats) -> Floats:
        return np.asarray(np.add.reduceat(series, starts) / np.diff(np.append(starts, len(rounds))))

    x = averaged(np.asarray(rounds, float))
    with _figure(title, 0, about) as (axes, svg):
        marker = "o" if len(x) <= 60 else None
        axes.plot(x, averaged(values), color=_COLORS[0], linewidth=1.5, marker=marker, markersize=3)
        if band is not None:
            low, high = (averaged(bound) for bound in band)
            if len(x) > 1:
                axes.fill_between(x, low, high, color=_COLORS[0], alpha=0.25, linewidth=0)
            else:  # A band over a single round has no width.
                axes.vlines(x, low, high, color=_COLORS[0], linewidth=1)
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(x) > 1 else FixedLocator(x.tolist()))
        axes.set_xlabel("round" if stretch == 1 else f"round (means of {stretch})")
        axes.set_ylabel(ylabel)
    return svg()


class _Drawing:
    """Receives the SVG of a figure when its block ends."""

    text = ""

    def __call__(self) -> Markup:
        return Markup(self.text)


@contextmanager
def _figure(title: str, entries: int, about: str = "") -> Iterator[tuple[Axes, _Drawing]]:
    """Open a figure with room for a legend of `entries` lines below; it is drawn when the block ends."""
    drawing = _Drawing()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn by the browser, which has fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Margins in inches: a layout engine would draw every figure twice to find them.
        legend = 0.155 * entries + (0.12 if entries else 0)
        lines = textwrap.wrap(title, 44, max_lines=3, placeholder="…") or [""]
        width, height = 4.6, 3.0 + legend + 0.17 * (len(lines) - 1)
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.8 / width, (0.5 + legend) / height, 3.58 / width, 2.2 / height))
        axes.set_title("\n".join(lines), loc="left")
        yield axes, drawing
        if entries:
            figure.legend(loc="lower left", bbox_to_anchor=(0, 0), borderaxespad=0.2)
        stream = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=empty)
        drawing.text = _inline(stream.getvalue(), f"{title}: {about}" if about else title)


def _inline(svg: str, title: str) -> str:
    """Return the `<svg>` element alone, in the page's colors and fonts, with a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"^<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg).replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # The page's font, and identifiers that two figures of one page do not share.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    own = hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'(?<= id=")|(?<= href="#)|(?<="url\(#)', f"f{own}-", svg)
    for placeholder, variable in [(_INK, "ink"), (_GRID, "grid")]:
        svg = svg.replace(placeholder, f"var(--{variable})")
    for index, placeholder in enumerate(_COLORS):
        svg = svg.replace(placeholder, f"var(--c{index})")
    return svg.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(title), 1)


def _whiskers(estimates: Sequence[Estimate | Measure]) -> Floats:
    """Return the distances `(2, n)` from each value to the ends of its interval, never negative."""
    below = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    above = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    return np.array([below, above])


def _percent(value: float, _position: int | None = None) -> str:
    return f"{100 * value:g} %"


def _fitting(text: str) -> str:
    """Return `text` cut to what fits the figure's width; the page's table has it whole."""
    return text if len(text) <= 62 else text[:61] + "…"
