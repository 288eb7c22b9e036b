"""Draws `docs/architecture.svg` from the imports that stand in the code: `python docs/draw_architecture.py`."""

import ast
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape

from written_imports import (
    ROOT,
    Graph,
    between_folders,
    folder_of,
    modules,
    tree_of,
    without_implied,
    written_imports,
)

PICTURE = ROOT / "docs" / "architecture.svg"
COLORS = {
    "deploy": ("#eef1f6", "#5b6b85"),
    "attacks": ("#fbeceb", "#b04a42"),
    "server": ("#fdf4e3", "#a8761b"),
    "clients": ("#e9f4ec", "#3d8555"),
    "defenses": ("#eaf2fa", "#3b74ad"),
}


@dataclass
class Box:
    """A box of the picture, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Where its vertical middle line stands."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return self.y + self.height

    @property
    def right(self) -> float:
        """Where it ends on the right."""
        return self.x + self.width


LINE, MARGIN, TITLE = 14, 24, 34
BOX_GAP, ROW_GAP = 28, 34


class Picture:
    """Collects the pieces of the picture: what lies above is added later."""

    def __init__(self) -> None:
        self.known = modules()
        self.imports = written_imports(self.known)
        self.pieces: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "small", color: str = "#333") -> None:
        """Write one line whose baseline starts at (x, y)."""
        self.pieces.append(f'<text x="{x:g}" y="{y:g}" class="{style}" fill="{color}">{escape(words)}</text>')

    def box(self, box: Box, fill: str, stroke: str) -> None:
        """Draw a box with round corners."""
        self.pieces.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="7" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def arrow(self, *points: tuple[float, float], color: str) -> None:
        """Draw an arrow along straight lines."""
        way = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        self.pieces.append(f'<path d="{way}" stroke="{color}" class="arrow" marker-end="url(#head-{color[1:]})"/>')

    def room(self, room: str, x: float, y: float, width: float, columns: int) -> Box:
        """Draw a room: its own modules that use its folders, the folders in rows, and its other modules."""
        fill, stroke = COLORS[room]
        mine = [name for name in self.known if name.split(".")[1] == room and self.known[name].name != "__init__.py"]
        folders = between_folders(self.imports, self.known)
        inside = {here: {one for one in to if one.split(".")[0] == room} for here, to in folders.items()}
        inside = {here: to for here, to in inside.items() if here.split(".")[0] == room}
        above, below = self._own_modules(room, mine)
        rows = list(_rows(inside, columns))
        cell = (width - 2 * MARGIN - (columns - 1) * BOX_GAP) / columns
        height = 34 + LINE * max((len(self._described(folder, cell)) for folder in inside), default=0)
        top = y + TITLE
        parts: list[tuple[Box, str]] = []
        if above:
            words = "import the folders below: " + ", ".join(above)
            parts.append((Box(x + MARGIN, top, width - 2 * MARGIN, 26), words))
            top += 26 + ROW_GAP / 2
        places: dict[str, Box] = {}
        for row in rows:
            for column, folder in row.items():
                places[folder] = Box(x + MARGIN + column * (cell + BOX_GAP), top, cell, height)
            top += height + ROW_GAP
        top -= ROW_GAP / 2 if rows else 0
        if below:
            words = ("import none of the folders: " if rows else "") + ", ".join(below)
            lines = textwrap.wrap(words, int(width / 6.3))
            parts.append((Box(x + MARGIN, top, width - 2 * MARGIN, 12 + LINE * len(lines)), words))
            top += 12 + LINE * len(lines) + MARGIN
        whole = Box(x, y, width, top - y)
        self.box(whole, fill, stroke)
        self.text(x + MARGIN, y + 22, f"{room}/", "title", stroke)
        self.text(x + MARGIN + 14 + 10 * len(room), y + 22, f"{len(mine)} modules", "small", stroke)
        for start, targets in without_implied(inside).items():
            for target in sorted(targets):
                self._inner_arrow(places[start], places[target], stroke)
        for part, words in parts:
            self.box(part, "#ffffff", stroke)
            for line, piece in enumerate(textwrap.wrap(words, int(width / 6.3))):
                self.text(part.x + 8, part.y + 17 + LINE * line, piece)
        for folder, place in places.items():
            self._folder(folder, place, stroke)
        return whole

    def _own_modules(self, room: str, mine: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the names of the room's own modules: those that use its folders, directly or not, and the others."""
        own = [name for name in mine if folder_of(name, self.known) == room]

        def uses_folders(name: str) -> bool:
            near = [one for one in self.imports[name] if one.split(".")[1] == room]
            return any(folder_of(one, self.known) != room or uses_folders(one) for one in near)

        above = [name.split(".")[-1] for name in own if uses_folders(name)]
        return above, [name.split(".")[-1] for name in own if name.split(".")[-1] not in above]

    def _folder(self, folder: str, place: Box, stroke: str) -> None:
        name = folder.split(".")[1]
        count = sum(1 for one in self.known if folder_of(one, self.known) == folder) - 1
        self.box(place, "#ffffff", stroke)
        self.text(place.x + 8, place.y + 18, name, "name")
        self.text(place.x + 16 + 8.2 * len(name), place.y + 18, f"{count} modules", "small", stroke)
        for line, piece in enumerate(self._described(folder, place.width)):
            self.text(place.x + 8, place.y + 36 + LINE * line, piece)

    def _described(self, folder: str, width: float) -> list[str]:
        words = ast.get_docstring(tree_of(self.known[f"metaleak.{folder}"])) or ""
        return textwrap.wrap(words.split("\n\n")[0], int((width - 12) / 5.7), max_lines=3, placeholder=" ...")

    def _inner_arrow(self, start: Box, end: Box, color: str) -> None:
        far = end.y - start.bottom > 2 * ROW_GAP
        if not far and start.x == end.x:
            self.arrow((start.middle, start.bottom), (end.middle, end.y), color=color)
            return
        out, into = start.bottom + ROW_GAP / 3, end.y - ROW_GAP / 3
        if far:  # Past the rows between, where no box stands.
            lane = start.x - BOX_GAP / 2 if end.x <= start.x else start.right + BOX_GAP / 2
            leave, turns = start.middle, [(lane, out), (lane, into)]
        else:
            lane = start.middle
            leave, turns = lane + (24 if end.x > start.x else -24), []
            into = out
        # Beside the middle, so that it does not end where an arrow from straight above does.
        arrive = end.middle + (24 if lane > end.middle else -24)
        self.arrow((leave, start.bottom), (leave, out), *turns, (arrive, into), (arrive, end.y), color=color)

    def parts_used(self, room: str, of: str) -> list[str]:
        """Return the folders and modules of the room `of` that `room` imports."""
        used = {
            target.split(".")[2]
            for module, targets in self.imports.items()
            for target in targets
            if module.split(".")[1] == room and target.split(".")[1] == of and target.count(".") > 1
        }
        return sorted(used, key=lambda name: (f"{of}.{name}" not in self._folders(), name))

    def _folders(self) -> set[str]:
        return {folder_of(module, self.known) for module in self.known}

    def draw(self) -> str:
        """Return the picture as SVG."""
        x, width, gap = 150.0, 860.0, 64.0
        deploy = self.room("deploy", x, 50, width, 2)
        attacks = self.room("attacks", x, deploy.bottom + 40, 490, 2)
        server = self.room("server", x + 600, attacks.y, width - 600, 1)
        clients = self.room("clients", x, max(attacks.bottom, server.bottom) + gap, width, 3)
        defenses = self.room("defenses", x, clients.bottom + gap, width, 3)
        rooms = {"deploy": deploy, "attacks": attacks, "server": server, "clients": clients, "defenses": defenses}
        self._arrows_between(rooms)
        self.text(x, 22, "What imports what", "title", "#333")
        self.text(
            x,
            40,
            "An arrow means 'imports', and its words say which parts. Inside a room an arrow that others imply "
            "is left out. deploy may import everything.",
        )
        heads = "".join(
            f'<marker id="head-{color[1:]}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
            for _, color in COLORS.values()
        )
        size = f"{x + width + 150:g} {defenses.bottom + 20:g}"
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">',
                "<style>text{font-family:Helvetica,Arial,sans-serif}.title{font-size:17px;font-weight:bold}.name{font-size:14px;font-weight:bold}"
                ".small{font-size:11.5px}.arrow{fill:none;stroke-width:1.5}</style>",
                f"<defs>{heads}</defs>",
                f'<rect width="{size.split()[0]}" height="{size.split()[1]}" fill="#ffffff"/>',
                *self.pieces,
                "</svg>\n",
            )
        )

    def _arrows_between(self, rooms: Mapping[str, Box]) -> None:
        lanes = {"left": 0, "right": 0}
        for start, end in (
            (start, end) for start in rooms for end in rooms if start != end and self.parts_used(start, end)
        ):
            here, there, color = rooms[start], rooms[end], COLORS[start][1]
            words = [] if start == "deploy" else textwrap.wrap(", ".join(self.parts_used(start, end)), 42)
            if here.y == there.y:  # Side by side.
                y = here.y + 60
                self.arrow((here.right, y), (there.x, y), color=color)
                at = (here.right + 12, y - 8)
            elif _neighbors(here, there, rooms.values()):
                shared = max(here.x, there.x), min(here.right, there.right)
                middle = sum(shared) / 2
                self.arrow((middle, here.bottom), (middle, there.y), color=color)
                at = (middle + 10, (here.bottom + there.y) / 2 + 4 - LINE * (len(words) - 1) / 2)
            else:
                side = "left" if start == "attacks" else "right"
                out = 30 + 36 * lanes[side]
                lanes[side] += 1
                edges = (here.x, there.x) if side == "left" else (here.right, there.right)
                lane = min(edges) - out if side == "left" else max(edges) + out
                leave, arrive = here.y + 60, there.y + 24 + 10 * (lanes[side] - 1)
                self.arrow((edges[0], leave), (lane, leave), (lane, arrive), (edges[1], arrive), color=color)
                words = textwrap.wrap(", ".join(self.parts_used(start, end)), 14) if start != "deploy" else []
                longest = 6 * max(map(len, words), default=0)
                at = (lane - 8 - longest if side == "left" else lane + 6, leave + 22)
            for line, piece in enumerate(words):
                self.text(at[0], at[1] + LINE * line, piece, "small", color)


def _neighbors(above: Box, below: Box, boxes: Iterable[Box]) -> bool:
    """Return whether nothing stands between one box and the one below it."""
    return above.bottom < below.y and not any(
        above.bottom < box.y < below.y and box.x < below.right and below.x < box.right for box in boxes
    )


def _rows(graph: Graph, columns: int) -> Iterator[dict[int, str]]:
    """Yield rows of at most `columns` folders, each by its column, so that arrows point downward."""
    level = dict.fromkeys(graph, 0)
    for _ in graph:
        for start, targets in graph.items():
            level.update({target: max(level[target], level[start] + 1) for target in targets})
    column: dict[str, int] = {}
    for height in range(max(level.values(), default=-1) + 1):
        row = sorted(folder for folder in graph if level[folder] == height)
        for first in range(0, len(row), columns):
            taken: dict[int, str] = {}
            for folder in row[first : first + columns]:
                above = [column[one] for one, to in without_implied(graph).items() if folder in to and one in column]
                free = [place for place in range(columns) if place not in taken]
                # Under the first that imports it, where there is room.
                column[folder] = above[0] if above and above[0] in free else free[0]
                taken[column[folder]] = folder
            yield taken


if __name__ == "__main__":
    PICTURE.write_text(Picture().draw())
