"""Figures as inline SVG in the page's colors, with points that show their numbers on hover without a script."""

import hashlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SERIES = 8
"""How many colors a figure has; the page's style sheet gives each, `--c0` and on, for light and dark."""

# Placeholder colors: each is replaced by one of the page's CSS variables in the finished SVG.
INK, _GRID = "#010203", "#010204"
COLORS = [f"#0102{0xA0 + index:02x}" for index in range(SERIES)]
# Seven shapes and eight colors give 56 different series; shapes serve readers who cannot tell the colors apart.
MARKERS = "osD^vPX"
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5))]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metaleak",
    "text.parse_math": False,  # A name may have a dollar sign, which is no formula here.
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
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


@dataclass
class Drawing:
    """Receives the SVG of a figure when its block ends; its points show their numbers on hover."""

    text: str = ""
    points: list[tuple[Axes, float, float, Sequence[str]]] = field(default_factory=list)

    def __call__(self) -> Markup:
        return Markup(self.text)

    def hover(self, axes: Axes, across: float, up: float, said: Sequence[str], **style: Any) -> None:
        """Draw a point at `(across, up)`, in the units of `axes`, that shows the lines `said` on hover."""
        axes.plot([across], [up], gid=f"point-{len(self.points)}", zorder=3, linestyle="none", **style)
        self.points.append((axes, across, up, said))

    def tips(self, width: float, height: float) -> list[str]:
        """Return the SVG of each point's hover text; the figure is `width` x `height` points."""
        return [self._tip(*point, width, height) for point in self.points]

    @staticmethod
    def _tip(axes: Axes, across: float, up: float, said: Sequence[str], width: float, height: float) -> str:
        x, y = axes.transData.transform((across, up))
        wide, high = 4.4 * max(map(len, said)) + 8, 10.5 * len(said) + 5
        left = min(max(2.0, x + 6), max(2.0, width - wide - 2))
        top = height - y + 6 if height - y + 6 + high < height else height - y - high - 6
        lines = "".join(
            f'<text x="{left + 4:.1f}" y="{top + 10.5 * (place + 1):.1f}">{escape(line)}</text>'
            for place, line in enumerate(said)
        )
        box = f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="3"/>'
        near = f'<circle class="near" cx="{x:.1f}" cy="{height - y:.1f}" r="6"/>'
        return f'{near}<g class="tip">{box}{lines}</g>'


@contextmanager
def figure(title: str, entries: int, about: str = "") -> Iterator[tuple[Axes, Drawing]]:
    """Open a figure with room for a legend of `entries` lines below it; it is drawn when the block ends."""
    drawing = Drawing()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib warns of letters that its font lacks; the browser draws them with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Margins in inches: a layout engine would draw every figure twice to find them.
        legend = 0.155 * entries + (0.12 if entries else 0)
        lines = textwrap.wrap(title, 44, max_lines=3, placeholder="…") or [""]
        width, height = 4.6, 3.0 + legend + 0.17 * (len(lines) - 1)
        # 72 dots an inch: a point of the SVG is a dot.
        drawn = Figure(figsize=(width, height), dpi=72)
        FigureCanvasSVG(drawn)
        axes = drawn.add_axes((0.8 / width, (0.5 + legend) / height, 3.58 / width, 2.2 / height))
        axes.set_title("\n".join(lines), loc="left")
        yield axes, drawing
        if entries:
            drawn.legend(loc="lower left", bbox_to_anchor=(0, 0), borderaxespad=0.2)
        stream = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(stream, format="svg", metadata=empty)
        text = _inline(stream.getvalue(), f"{title}: {about}" if about else title)
        drawing.text = _with_tips(text, drawing, 72 * width, 72 * height)


def _inline(svg: str, title: str) -> str:
    """Return only the `<svg>` element, in the page's colors and fonts, with a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"^<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg).replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # The page's font, and identifiers that two figures of one page do not share.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<g id="point-(\d+)"', r'<g data-point="\1"', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    own = hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    svg = re.sub(r'(?<= id=")|(?<= href="#)|(?<="url\(#)', f"f{own}-", svg)
    for placeholder, variable in [(INK, "ink"), (_GRID, "grid")]:
        svg = svg.replace(placeholder, f"var(--{variable})")
    for index, placeholder in enumerate(COLORS):
        svg = svg.replace(placeholder, f"var(--c{index})")
    return svg.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(title), 1)


def _with_tips(svg: str, drawing: Drawing, width: float, height: float) -> str:
    """Return the figure with the hover texts of its points, at the end, so that they are drawn above everything."""
    for number, (tip, (_, _, _, said)) in enumerate(zip(drawing.tips(width, height), drawing.points, strict=True)):
        begin = svg.index(f'<g data-point="{number}">')
        depth, end = 0, begin
        for tag in re.finditer(r"<g\b|</g>", svg[begin:]):
            depth += 1 if tag[0] == "<g" else -1
            if depth == 0:
                end = begin + tag.end()
                break
        label = escape(", ".join(said))
        moved = svg[begin:end].replace(
            f'<g data-point="{number}">', f'<g class="point" tabindex="0" role="img" aria-label="{label}">', 1
        )
        svg = svg[:begin] + svg[end:]
        svg = svg.replace("</svg>", f"{moved.removesuffix('</g>')}{tip}</g></svg>")
    return svg
