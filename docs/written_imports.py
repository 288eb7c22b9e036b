"""Which modules of the rooms import which: what stands in the code, without running it."""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("attacks", "clients", "defenses", "deploy", "server")

Graph = dict[str, set[str]]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(path.read_text())


def modules() -> dict[str, Path]:
    """Return every module of the five rooms by its full name; a package stands under its own."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if "flower_app" not in path.parts:  # A Flower app of its own, copied and installed elsewhere.
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(("metaleak", *parts)).removesuffix(".__init__")] = path
    return found


def written_imports(known: Mapping[str, Path]) -> Graph:
    """Return the modules that each module imports, wherever in it the import stands.

    A name that a package imports lazily counts as an import of the module that defines it, and a package imports
    nothing by itself.
    """
    faces = {name: _lazy_names(path) for name, path in known.items() if path.name == "__init__.py"}
    return {
        name: set() if path.name == "__init__.py" else set(_imports(path, known, faces)) - {name}
        for name, path in known.items()
    }


def _lazy_names(path: Path) -> dict[str, str]:
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES":
            return dict(ast.literal_eval(node.value))
    return {}


def _imports(path: Path, known: Mapping[str, Path], faces: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in known)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{path}, line {node.lineno}: a relative import; write the full name")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in known:
            for one in node.names:
                if f"{node.module}.{one.name}" in known:
                    yield f"{node.module}.{one.name}"
                elif one.name in faces.get(node.module, {}):
                    yield f"{node.module}.{faces[node.module][one.name]}"
                else:
                    yield node.module


def folder_of(module: str, known: Mapping[str, Path]) -> str:
    """Return the folder in which a module stands, such as `attacks.span`."""
    return ".".join(known[module].relative_to(ROOT).parent.parts)


def between_folders(imports: Graph, known: Mapping[str, Path]) -> Graph:
    """Return which folders with a name of their own inside a room import which others, of any room."""
    found: Graph = {folder_of(module, known): set() for module in known}
    for module, targets in imports.items():
        here = folder_of(module, known)
        found[here] |= {folder_of(target, known) for target in targets} - {here}
    return {here: {one for one in targets if "." in one} for here, targets in found.items() if "." in here}


def without_implied(graph: Graph) -> Graph:
    """Return an acyclic graph without the arrows that a longer way says already."""

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(target) for target in graph.get(start, ())))

    return {
        start: {one for one in targets if not any(one in reached(other) for other in targets - {one})}
        for start, targets in graph.items()
    }
