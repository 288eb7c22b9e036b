"""The examples run as they stand, and are short."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from flower_apps.fedavg import run_app
from local_grid import local_simulate
from PIL import Image

import metaleak.deploy.simulate.launch as launch

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(launch, "simulate", local_simulate)


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory):
    """Return the record of a FedAvg app, and the file that says what the adversary knows of it."""
    folder = tmp_path_factory.mktemp("fedavg")
    truth = run_app(folder / "record", clients=3, fewest=20, most=30)
    asked = [(example, learner, 1) for learner, held in truth.members.items() for example in held]
    asked += [(example, learner, 0) for learner in truth.members for example in truth.outsiders[:40]]
    lines = ["example,learner,member", *(",".join(map(str, one)) for one in asked)]
    (folder / "candidates.csv").write_text("\n".join(lines))
    (folder / "app.yaml").write_text(
        "model: flower_apps.networks:MLP\nholds: weights\nrule: {name: fedavg, epochs: 1, batch: 16, rate: 0.1}\n"
        "normalize: {mean: [0.1307], std: [0.3081]}\ndata: mnist-5k\ncandidates: candidates.csv\n"
    )
    return truth.record, folder / "app.yaml"


def said(capsys, name, *arguments):
    sys.modules.pop(name, None)
    before, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_at_most_25_lines_of_code(path):
    code = re.sub(r'^\s*"""(.|\n)*?"""$', "", path.read_text(), flags=re.MULTILINE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_a_defense_of_ones_own(capsys):
    lines = said(capsys, "own_defense").splitlines()
    assert len(lines) == 2
    assert all(re.search(r"AUC [01]\.\d{3}$", line) for line in lines)


@pytest.mark.parametrize("name", ["own_attack", "own_model"])
def test_what_is_found_of_digits(capsys, name):
    assert float(said(capsys, name).removeprefix("AUC ")) > 0.6


def test_images_of_ones_own(capsys, tmp_path):
    random = np.random.default_rng(0)
    for kind in range(4):
        (tmp_path / f"images/{kind}").mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 256, (84, 84, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{kind}/{number}.png")
    assert re.fullmatch(r"AUC [01]\.\d{3}\n", said(capsys, "own_images", tmp_path / "images"))


def test_a_fedavg_app_is_attacked(capsys, fedavg):
    assert said(capsys, "attack_fedavg", *fedavg).startswith("AUC 1.000; scores in ")


def test_a_record_is_read(capsys, fedavg):
    assert "norm " in said(capsys, "read_record", fedavg[0])


def test_a_mechanism_is_audited(capsys):
    promised, proven = map(float, re.findall(r"[\d.]+\d", said(capsys, "audit_mechanism")))
    assert promised == 8.0
    assert 4 < proven <= promised


def test_sentences_are_rebuilt(capsys):
    pytest.importorskip("transformers")
    assert float(said(capsys, "text").partition(": ")[2].rstrip("%\n")) > 50


def test_pretraining_data_are_asked_about(capsys):
    assert re.fullmatch(r"gaussian-ratio: AUC [01]\.\d{3}\n", said(capsys, "pretraining"))
