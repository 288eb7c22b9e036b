"""`metaleak audit model`: a table for a person, one JSON document for a program, one line for a mistake."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from metaleak.deploy.cli import main


def call(capsys, *arguments):
    """Return the exit code, what was printed and what was complained."""
    with pytest.raises(SystemExit) as leaving:
        main(["audit", "model", *arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _networks(tmp_path, monkeypatch):
    (tmp_path / "audited_networks.py").write_text(
        "from torch import nn\n\n\n"
        "def cnn6_d() -> nn.Module:\n"
        "    return nn.Sequential(nn.Conv2d(3, 12, 4, 2, 2), nn.LeakyReLU(0.2), nn.Conv2d(12, 20, 3, 2, 1), "
        "nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1620, 10))\n\n\n"
        "def determined() -> nn.Module:\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))\n\n\n"
        "def lacking() -> nn.Module:\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 4, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(18, 3))\n"
    )
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_the_table_of_any_module(capsys):
    code, out, err = call(capsys, "audited_networks:cnn6_d")
    assert (code, err) == (0, "")
    assert "c(M) = -140;" in out
    assert "2 lacks 280 of 3468 constraints" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_has_a_number_only_for_what_is_covered(capsys):
    _, out, _ = call(capsys, "audited_networks:cnn6_d", "--json")
    found = json.loads(out)
    assert (found["c"], found["covered"]) == (-140.0, "exact")
    assert [(layer["name"], layer["deficit"]) for layer in found["layers"]] == [("0", 0), ("2", 280), ("5", 0)]
    assert found["i2f"] > 0
    _, out, _ = call(capsys, "conv4", "--input", "1x16x16", "--set", "filters=4", "--json")
    found = json.loads(out)
    assert (found["c"], found["covered"], found["layers"][0]["rank"]) == (None, "no", None)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("audited_networks:determined", ["R-GAP", "64 of 64", 'alt="rebuilt input of 3"']),
        ("audited_networks:lacking", ["R-GAP", "Hybrid", "46 of 64"]),
        ("conv4", ["Not applicable: the model is not a chain of layers"]),
    ],
)
def test_the_page_shows_what_each_layer_gives_away_or_why_it_cannot(capsys, tmp_path, network, said):
    size = ["--input", "1x16x16" if network == "conv4" else "1x8x8"]
    code, _, err = call(capsys, network, *size, "--image", "image.png", "--report", "page.html")
    assert (code, err) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert not [part for part in said if part not in page]
    assert "Hybrid" in said or "Hybrid" not in page
    assert "://" not in page
    assert "<script" not in page


def test_a_determined_image_is_rebuilt_in_the_page(capsys, tmp_path):
    call(capsys, "audited_networks:determined", "--input", "1x8x8", "--image", "image.png", "--report", "page.html")
    (decibels,) = re.findall(r"Rebuilt from its gradient: ([\d.]+) dB", (tmp_path / "page.html").read_text())
    assert float(decibels) > 80


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lenet", "--image", "image.png"], "--image and --report: must be given together"),
        (["lenet", "--input", "1x8x8", "--image", "no.png", "--report", "page.html"], "no.png: No such file"),
        (
            ["lenet", "--input", "2x8x8", "--image", "image.png", "--report", "page.html"],
            "an image has 1 or 3 channels",
        ),
        (
            ["lenet", "--input", "1x8x8", "--image", "image.png", "--label", "5", "--report", "page.html"],
            "the label must be below 5",
        ),
        (["lenet", "--input", "3x3"], "--input: must be channels x height x width"),
        (["lenet", "--input", "3x9999x9999"], "--input: must have at most 1000000 numbers"),
        (["lenett"], "unknown name 'lenett'"),
        (["lenet", "--set", "filter=3"], "unknown key 'filter'"),
        (["audited_networks:cnn6_d", "--input", "1x28x28"], "the module cannot take such an input"),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, arguments, complaint):
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
