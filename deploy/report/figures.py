"""The figures: the same numbers always give the same bytes."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from metaleak.attacks.evaluation.intervals import Estimate
from metaleak.attacks.evaluation.measures import AUC, Measure
from metaleak.attacks.evaluation.roc import Bools, Floats, roc_curve
from metaleak.deploy.report.drawing import COLORS, DASHES, INK, MARKERS, SERIES, figure
from metaleak.deploy.report.wording import rate_text

_LEVELS = (0.001, 0.01, 0.1)
"""The false-positive rates at which a ROC curve shows its numbers."""


@dataclass(frozen=True)
class FrontierPoint:
    """A defense at a scale: the `accuracy` that it leaves, and the strongest attack's headline measure (`leak`).

    `best` when no other point of the figure has both more accuracy and a weaker attacker.
    """

    series: str
    label: str
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


@dataclass(frozen=True)
class Drawn:
    """A figure, and the numbers behind it as a table."""

    title: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Colors = Mapping[str, int]
"""The color of each defense, by its name: the same in all figures of a page."""


def frontier(title: str, points: Sequence[FrontierPoint], colors: Colors, accuracy: str) -> Drawn:
    """Return what attacks measure against accuracy with 95 % intervals; the best points are joined.

    `accuracy` is what the accuracy of the points is called.
    """
    best = sorted((point.accuracy.value, point.leak.value) for point in points if point.best)
    measure = points[0].leak
    about = f"the strongest attack's {measure.name} against {accuracy}"
    with figure(title, len({point.series for point in points}) + 1, about) as (axes, svg):
        axes.plot(*zip(*best, strict=True), color=INK, linewidth=1, alpha=0.55, zorder=1, label="best trade-offs")
        for series in dict.fromkeys(point.series for point in points):
            own = [point for point in points if point.series == series]
            index = colors[series]
            x, y = ([getattr(point, axis).value for point in own] for axis in ("accuracy", "leak"))
            axes.errorbar(
                x,
                y,
                xerr=_whiskers([point.accuracy for point in own]),
                yerr=_whiskers([point.leak for point in own]),
                color=COLORS[index % SERIES],
                linestyle="none",
                elinewidth=0.8,
                capsize=2,
            )
            for number, (point, across, up) in enumerate(zip(own, x, y, strict=True)):
                said = [
                    _fitting(point.label),
                    f"accuracy {_rate(point.accuracy, True)}",
                    f"{measure.name} {_rate(point.leak)}",
                ]
                style = {"color": COLORS[index % SERIES], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
                svg.hover(axes, across, up, said, **style, label=None if number else _fitting(series))
                if point.scale:
                    axes.annotate(point.scale, (across, up), (4, 4), textcoords="offset points", fontsize=7.5,
                                  color=COLORS[index % SERIES])  # fmt: skip
        axes.set_xlabel(f"{accuracy} (right is better)")
        axes.set_ylabel(
            f"strongest attack's {measure.name} ({'lower' if measure.higher_leaks else 'higher'} is better)"
        )
        if measure.name == AUC:
            axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
            axes.annotate("guessing", (0.99, 0.5), (0, -3), xycoords=("axes fraction", "data"), ha="right", va="top",
                          textcoords="offset points", fontsize=7.5)  # fmt: skip
            axes.set_ylim(min([0.45, *(point.leak.low - 0.02 for point in points)]), 1.03)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.12)
    columns = ("defense", accuracy, "95 % interval", f"strongest attack's {measure.name}", "95 % interval")
    rows = ((one.label, *rate_text(one.accuracy, True), *rate_text(one.leak)) for one in points)
    return Drawn(f"{title}: {about}", svg(), columns, tuple(rows))


def log_roc(title: str, curves: Sequence[Curve], colors: Colors | None = None) -> Drawn:
    """Return ROC curves on logarithmic axes, from 1 / non-members to 1, as steps: TPR at FPR at most x.

    A curve begins where its first member is found; each needs at least one member and one non-member.
    """
    with figure(title, len(curves) + 1) as (axes, svg):
        left = min(1 / int((~curve.member).sum()) for curve in curves)
        bottom = min(1 / int(curve.member.sum()) for curve in curves)
        if colors is None:
            colors = {name: index for index, name in enumerate(dict.fromkeys(curve.series for curve in curves))}
        rows = []
        drawn = Counter[str]()
        for curve in curves:
            fpr, tpr = roc_curve(curve.scores, curve.member)
            x = np.geomspace(1 / int((~curve.member).sum()), 1, 161)
            # 1e-12 forgives the rounding of the logarithmic grid: its first point is one false positive.
            y = tpr[np.searchsorted(fpr, x + 1e-12, side="right") - 1]
            color = colors[curve.series]
            axes.plot(x, np.where(y > 0, y, np.nan), drawstyle="steps-post", color=COLORS[color % SERIES],
                      linestyle=DASHES[drawn[curve.series] % len(DASHES)], linewidth=1.5,
                      label=_fitting(curve.label))  # fmt: skip
            drawn[curve.series] += 1
            found = [tpr[np.searchsorted(fpr, level + 1e-12, side="right") - 1] for level in _LEVELS]
            for level, rate in zip(_LEVELS, found, strict=True):
                if level >= x[0] * (1 - 1e-9) and rate > 0:
                    said = [_fitting(curve.label), f"TPR {float(rate):.1%} at {_percent(level)} FPR"]
                    style = {"color": COLORS[color % SERIES], "marker": "o", "markersize": 3}
                    svg.hover(axes, level, rate, said, **style)
            resolved = (level >= x[0] * (1 - 1e-9) for level in _LEVELS)
            rows.append((curve.label, *(f"{100 * rate:.1f} %" if known else "–"
                                        for rate, known in zip(found, resolved, strict=True))))  # fmt: skip
        axes.plot([left, 1], [left, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 2)), label="guessing")
        axes.set(xscale="log", yscale="log", xlim=(left, 1.08), ylim=(bottom, 1.08))
        for axis, low in ((axes.xaxis, left), (axes.yaxis, bottom)):
            decades = 10.0 ** np.arange(np.floor(np.log10(low)), 1)
            axis.set_major_locator(FixedLocator(decades[decades >= low * 0.999].tolist()))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel("false-positive rate (log)")
        axes.set_ylabel("true-positive rate (log)")
    return Drawn(title, svg(), ("defense", *(f"TPR at {_percent(level)} FPR" for level in _LEVELS)), tuple(rows))


def training_curve(
    about: str,
    title: str,
    ylabel: str,
    rounds: Sequence[int],
    values: Floats,
    band: tuple[Floats, Floats] | None = None,
    color: int = 0,
) -> Drawn:
    """Return `values (R,)` over `rounds (R,)` with an optional band `(low (R,), high (R,))`; NaN is a gap.

    `about` describes the curve for screen readers. Values with a band are rates, drawn in per cent. More than 1 000
    rounds are averaged in equal stretches.
    """
    stretch = -(-len(rounds) // 1000)
    starts = np.arange(0, len(rounds), stretch)

    def averaged(series: Floats) -> Floats:
        return np.asarray(np.add.reduceat(series, starts) / np.diff(np.append(starts, len(rounds))))

    x = averaged(np.asarray(rounds, float))
    with figure(title, 0, about) as (axes, svg):
        marker = "o" if len(x) <= 60 else None
        y = averaged(values)
        axes.plot(x, y, color=COLORS[color % SERIES], linewidth=1.5)
        if marker:
            for across, up in zip(x.tolist(), y.tolist(), strict=True):
                if np.isfinite(up):
                    shown = f"{up:.1%}" if band is not None else f"{up:.4g}"
                    svg.hover(axes, across, up, [f"round {across:g}", f"{ylabel} {shown}"], marker=marker,
                              color=COLORS[color % SERIES], markersize=3)  # fmt: skip
        if band is not None:
            low, high = (averaged(bound) for bound in band)
            if len(x) > 1:
                axes.fill_between(x, low, high, color=COLORS[color % SERIES], alpha=0.25, linewidth=0)
            else:  # A band over a single round has no width.
                axes.vlines(x, low, high, color=COLORS[color % SERIES], linewidth=1)
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(x) > 1 else FixedLocator(x.tolist()))
        axes.set_xlabel("round" if stretch == 1 else f"round (means of {stretch})")
        axes.set_ylabel(ylabel)
    values_shown = [f"{value:.1%}" if band is not None else f"{value:.4g}" for value in y.tolist()]
    columns = ("round", ylabel, *(("95 % interval",) if band is not None else ()))
    intervals = [()] * len(values_shown) if band is None else [
        (f"{100 * below:.1f}–{100 * above:.1f}",) for below, above in zip(low, high, strict=True)
    ]  # fmt: skip
    rows = ((f"{at:g}", one, *rest) for at, one, rest in zip(x.tolist(), values_shown, intervals, strict=True))
    return Drawn(f"{about}: {title}", svg(), columns, tuple(rows))


def _rate(estimate: Estimate | Measure, percent: bool = False) -> str:
    value, interval = rate_text(estimate, percent)
    return f"{value} ({interval})"


def _whiskers(estimates: Sequence[Estimate | Measure]) -> Floats:
    """Return the distances `(2, n)` from each value to the ends of its interval, never negative."""
    below = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    above = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    return np.array([below, above])


def _percent(value: float, _position: int | None = None) -> str:
    return f"{100 * value:g} %"


def _fitting(text: str) -> str:
    """Return `text` cut to what fits the figure's width, between words; the page's table has it whole."""
    cut = textwrap.shorten(text, 62, placeholder=" …")
    return cut if cut.strip() != "…" else text[:61] + "…"
