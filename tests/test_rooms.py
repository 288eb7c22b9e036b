"""The rules of the rooms: what may import what, what importing loads, and the form of the code."""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from draw_architecture import PICTURE, Picture
from written_imports import ROOMS, ROOT, between_folders, folder_of, modules, written_imports

MAY_IMPORT = {
    "defenses": (),
    "clients": ("defenses",),
    "server": ("clients.models", "clients.rules", "clients.wire", "clients.episode", "defenses"),
    "attacks": ("server.record", "clients.models", "clients.rules", "clients.wire", "clients.episode", "defenses"),
    "deploy": ROOMS,
}
"""What the modules of a room may import beside one another, and what may be loaded by importing them."""

NEVER = {
    "deploy.results": ("deploy.assess", "deploy.simulate", "deploy.suites", "deploy.report"),
    "deploy.report": ("deploy.assess", "deploy.suites"),
}
"""What the modules of a folder may not, although its room may."""

LIGHT = {
    "attacks.evaluation": ("flwr", "ray", "torch", "matplotlib", "sklearn"),
    "server.record": ("flwr", "ray", "torch", "matplotlib", "sklearn"),
    "server.curious.curious_server": ("ray", "torch", "matplotlib", "sklearn"),
    "attacks": ("flwr", "ray", "matplotlib", "sklearn"),
}
"""What is of use without the rest, in another Flower app or on its own, and what it never loads."""

MOST_MODULES = 15
MOST_LINES = 300
LONGER = {}
"""The modules that are longer than `MOST_LINES`, and why."""

KNOWN = modules()
IMPORTS = written_imports(KNOWN)


def within(module, *places):
    """Whether a module is one of these places, or inside one; all without `metaleak.`."""
    return any(module == place or module.startswith(place + ".") for place in places)


def short(names):
    return sorted(name.removeprefix("metaleak.") for name in names if name != "metaleak")


def forbidden(module, imports):
    """Return which of the imported modules the module may not import."""
    room = module.partition(".")[0]
    never = [one for folder, others in NEVER.items() if within(module, folder) for one in others]
    return [one for one in imports if within(one, *never) or not within(one, room, *MAY_IMPORT[room])]


def holds_one_of(package, places):
    """Whether a place is inside the package: a package is loaded before what is inside it."""
    return any(place.startswith(package + ".") for place in places)


def test_a_room_imports_only_what_it_may():
    wrong = {
        module: found for module in short(KNOWN) if (found := forbidden(module, short(IMPORTS["metaleak." + module])))
    }
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from metaleak.deploy.assess.truth import Truth",
        "import metaleak.clients.federation",
        "from metaleak.clients import Federation",
        "from metaleak.clients import federation",
        "from metaleak.server.learning.meta_learner import MetaLearner",
    ],
)
def test_the_rule_would_see_a_wrong_import(text, tmp_path):
    (tmp_path / "wrong.py").write_text(text)
    name = "metaleak.attacks.wrong"
    assert forbidden("attacks.wrong", short(written_imports({**KNOWN, name: tmp_path / "wrong.py"})[name]))


def test_results_and_report_know_nothing_of_the_truth():
    assert forbidden("deploy.report.page", ["deploy.assess.truth"])
    assert forbidden("deploy.results.reading", ["deploy.assess.privacy"])
    assert not forbidden("deploy.suites.jobs", ["deploy.assess.truth"])


LOADED = """
import importlib, json, sys

found = []
for names in json.loads(sys.argv[1]):
    for name in [name for name in sys.modules if name.partition(".")[0] == "metaleak"]:
        del sys.modules[name]
    for name in names:
        importlib.import_module("metaleak." + name)
    found.append(list(sys.modules))
print(json.dumps(found))
"""


def loaded_by(places):
    """Return what importing all modules of a place loads, by place; libraries that one loads stay for the next."""
    named = [[module for module in short(KNOWN) if within(module, place)] for place in places]
    outcome = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(named)], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    return dict(zip(places, json.loads(outcome.stdout), strict=True))


@pytest.fixture(scope="module")
def loaded():
    return {
        **loaded_by(("attacks.evaluation", "server.record", "server.curious.curious_server")),
        **loaded_by(("attacks", "defenses", "clients", "server", *NEVER)),
    }


def ours(names):
    return short(name for name in names if name.partition(".")[0] == "metaleak")


@pytest.mark.parametrize("place", ["defenses", "clients", "server", "attacks", *NEVER])
def test_importing_a_room_loads_only_what_it_may(place, loaded):
    room = place.partition(".")[0]
    allowed = (room, *MAY_IMPORT[room])
    assert within(place, *ours(loaded[place]))
    assert not [
        name
        for name in ours(loaded[place])
        if within(name, *NEVER.get(place, ())) or not (within(name, *allowed) or holds_one_of(name, allowed))
    ]


@pytest.mark.parametrize("place", LIGHT)
def test_what_is_of_use_without_the_rest_loads_no_large_library(place, loaded):
    assert within(place, *ours(loaded[place]))
    assert not set(LIGHT[place]) & set(loaded[place])


def test_evaluating_scores_loads_no_learners_and_reading_a_record_no_server(loaded):
    for place, allowed in (
        ("attacks.evaluation", ("attacks.evaluation", "defenses.accounting")),
        ("server.record", ("server.record", "clients.wire")),
    ):
        assert not [
            name for name in ours(loaded[place]) if not (within(name, *allowed) or holds_one_of(name, allowed))
        ]


def names_of_a_face(path):
    """Return a package's names, each with its module: as type checkers, as Python, and as `import *` know them."""
    tree = ast.parse(path.read_text())
    package = ".".join(("metaleak", *path.relative_to(ROOT).parent.parts))
    checked = {
        one.name: node.module.removeprefix(package + ".")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith(package + ".")
        for one in node.names
    }
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("_MODULES", "__all__")
    }
    return checked, assigned.get("_MODULES", {}), assigned.get("__all__", [])


@pytest.mark.parametrize("path", [path for path in KNOWN.values() if path.name == "__init__.py"], ids=str)
def test_a_package_states_its_lazy_names_alike_for_type_checkers_and_for_python(path):
    checked, lazy, public = names_of_a_face(path)
    assert checked == lazy
    assert sorted(public) == sorted(lazy)
    # Importing a module inside a package would put the module in the place of a name that is spelled like it.
    inside = {one.stem for one in path.parent.iterdir()}
    assert not inside & set(lazy)


def test_a_lazy_name_is_found_once_and_an_unknown_one_is_an_error():
    import metaleak.defenses as face
    from metaleak.defenses.noise import Noise

    assert face.Noise is Noise
    assert vars(face)["Noise"] is Noise
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match=r"'metaleak\.defenses' has no attribute 'Nose'"):
        face.Nose  # noqa: B018


def cycle(graph):
    """Return one cycle of a graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other():
    assert not cycle(IMPORTS)


def test_no_folders_import_each_other():
    assert not cycle(between_folders(IMPORTS, KNOWN))


def test_the_rule_would_see_a_cycle():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_no_folder_holds_too_many_modules():
    folders = [folder_of(name, KNOWN) for name, path in KNOWN.items() if path.name != "__init__.py"]
    assert not {folder for folder in folders if folders.count(folder) > MOST_MODULES}


def test_no_module_is_too_long_without_a_reason():
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in KNOWN.values()}
    assert {path for path, count in lines.items() if count > MOST_LINES} == set(LONGER)


def test_the_packages_of_the_project_are_the_folders_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {name: "/".join(name.split(".")[1:]) for name, path in KNOWN.items() if path.name == "__init__.py"}
    assert there.keys() == {".".join(("metaleak", *path.relative_to(ROOT).parent.parts)) for path in KNOWN.values()}
    # To setuptools a folder of data is a package, too.
    there |= {
        f"metaleak.{'.'.join(path.parts)}": str(path)
        for path in (folder.relative_to(ROOT) for folder in (ROOT / "deploy").glob("*/templates"))
    }
    assert sorted(project["packages"]) == sorted(there)
    assert project["package-dir"] == there


def test_attacks_are_tested_without_what_launches_them():
    helpers = {path.stem: path for path in (ROOT / "tests").glob("*.py")}

    def launches(path):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if any(within(name, "metaleak.deploy") for name in names):
                return True
            if any(launches(helpers[name]) for name in names if name in helpers):
                return True
        return False

    assert launches(helpers["local_grid"])
    assert not [str(path) for path in sorted((ROOT / "tests" / "attacks").rglob("*.py")) if launches(path)]


def test_the_picture_is_that_of_the_code():
    assert PICTURE.read_text() == Picture().draw(), "the rooms have changed: python docs/draw_architecture.py"


PICKLES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
RUNS_CODE = ("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
EVALUATES = ("eval", "exec")


def dangers(tree, evaluates):
    """Every import of a pickle, and every call that reads one from disk or (of `evaluates`) runs a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from (name for name in named if name.partition(".")[0] in PICKLES)
            if isinstance(node, ast.ImportFrom):
                yield from (
                    f"{node.module}.{one.name}" for one in node.names if f"{node.module}.{one.name}" in RUNS_CODE
                )
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in (*RUNS_CODE, *evaluates) or called.removeprefix("builtins.") in evaluates:
                yield called
            yield from (
                "allow_pickle"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            )


def test_nothing_on_disk_is_pickled_and_nothing_is_evaluated():
    rooms = [(path, EVALUATES) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    # The tests run the code blocks of our own pages.
    own = [(path, ("eval",)) for path in (ROOT / "tests").rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {danger}"
        for path, evaluates in (*rooms, *own)
        for danger in dangers(ast.parse(path.read_text()), evaluates)
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os, cloudpickle",
        "from pickle import loads",
        "from torch import load",
        "x = [eval(text)]",
        "builtins.exec(text)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text, Loader)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
    ],
)
def test_the_rule_would_see_a_pickle_and_an_evaluation(text):
    assert list(dangers(ast.parse(text), EVALUATES))


@pytest.mark.parametrize("text", ["np.load(path, allow_pickle=False)", "model.eval()", "yaml.safe_load(text)"])
def test_the_rule_lets_harmless_calls_pass(text):
    assert not list(dangers(ast.parse(text), EVALUATES))


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff_is_content(arguments):
    outcome = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout


def test_types_hold_everywhere(tmp_path):
    """mypy reads the sources through a tree of links, laid out as the installed package is."""
    tree = tmp_path / "metaleak"
    tree.mkdir()
    for room in ROOMS:
        (tree / room).symlink_to(ROOT / room)
    packages = [argument for room in ROOMS for argument in ("-p", f"metaleak.{room}")]
    outcome = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *packages],
        cwd=ROOT,
        env={"MYPYPATH": str(tmp_path), "PATH": str(Path(shutil.which("true") or "/bin/true").parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout
