"""Omniglot loads from its published archives, and damage is named."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaleak.clients.datasets import (
    DataSet,
    Omniglot,
)


def drawing(row: int) -> bytes:
    """A white sheet of 105x105 pixels with one black stroke near its top, `row` pixels down."""
    sheet = np.ones((105, 105), dtype=bool)
    sheet[row : row + 8, 20:80] = False
    file = BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def write_omniglot(folder: Path, **changed: bytes) -> Path:
    """Two background characters and one for evaluation, three drawings each, listed in no order."""
    folder.mkdir(parents=True)
    for name, characters in {
        "images_background": ("B/character01", "A/character02"),
        "images_evaluation": ("C/c1",),
    }.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as packed:
            for character in characters:
                for number in (2, 3, 1):
                    inside = f"{name}/{character}/{number}.png"
                    packed.writestr(inside, changed.get(inside, drawing(10 * number)))
            packed.writestr(f"__MACOSX/{name}/A/._{number}.png", b"not a drawing")
    return folder


@pytest.mark.parametrize("subfolder", ["omniglot", "omniglot-py", "."])
def test_omniglot_turns_background_characters_only(subfolder: str, tmp_path: Path, cache: Path) -> None:
    write_omniglot(tmp_path / "data" / subfolder)
    data = Omniglot(data_dir=tmp_path / "data").load()
    assert data.examples.shape == (27, 1, 28, 28)
    assert data.classes[:3] == ("A/character02", "B/character01", "A/character02 turned 90")
    assert data.classes[8:] == ("C/c1",)
    assert data.held_out_classes == {8}
    assert torch.bincount(data.labels).tolist() == [3] * 9
    assert torch.equal(data.examples[6:12], data.examples[:6].rot90(1, (2, 3)))
    first, third = data.examples[0, 0], data.examples[2, 0]
    assert int(first.max()) == 255, "ink is bright"
    assert int(first[-1].max()) == 0, "paper is dark"
    assert first.sum(1).argmax() < third.sum(1).argmax(), "drawings are sorted"
    plain = Omniglot(data_dir=tmp_path / "data", rotations=False).load()
    assert plain.held_out_classes == {2}
    assert torch.equal(plain.examples, torch.cat([data.examples[:6], data.examples[24:]]))
    assert len(list(cache.iterdir())) == 1, "both are one cached array"
    assert Omniglot(data_dir=tmp_path / "data", size=20).load().examples.shape == (27, 1, 20, 20)


def test_damaged_omniglot_is_named(tmp_path: Path, complaint: Callable[[DataSet], str]) -> None:
    inside = "images_background/A/character02/2.png"
    write_omniglot(tmp_path / "one" / "omniglot", **{inside: drawing(10)[:-40]})
    assert f"images_background.zip: {inside} is damaged" in complaint(Omniglot(data_dir=tmp_path / "one"))
    folder = write_omniglot(tmp_path / "two" / "omniglot")
    archive = folder / "images_evaluation.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-60])
    assert f"{archive} is damaged" in complaint(Omniglot(data_dir=tmp_path / "two"))
    archive.write_bytes(whole.replace(drawing(10)[60:70], bytes(10), 1))
    assert f"{archive}: images_evaluation/C/c1/" in complaint(Omniglot(data_dir=tmp_path / "two"))
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("readme.txt", "nothing")
    assert f"{archive} holds no drawing" in complaint(Omniglot(data_dir=tmp_path / "two"))


def test_published_omniglot_is_complete(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All drawings take ten seconds to decode; some of them are decoded in the next test.
    blank = np.zeros((32460, 1, 28, 28), dtype=np.uint8)
    monkeypatch.setattr("metaleak.clients.datasets.omniglot.kept_images", lambda name, make: blank)
    data = Omniglot(data_dir=shared_data).load()
    assert data.examples.shape == (90300, 1, 28, 28)
    assert len(data.classes) == 4 * 964 + 659
    assert set(torch.bincount(data.labels).tolist()) == {20}
    assert data.held_out_classes == frozenset(range(4 * 964, 4 * 964 + 659))


def test_published_drawings_are_bright_strokes_on_dark_paper(shared_data: Path, tmp_path: Path) -> None:
    for name, alphabet in (("images_background", "Tagalog"), ("images_evaluation", "Tengwar")):
        published = zipfile.ZipFile(shared_data / "omniglot" / f"{name}.zip")
        with published as whole, zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as part:
            for entry in whole.namelist():
                if f"/{alphabet}/" in entry:
                    part.writestr(entry, whole.read(entry))
    data = Omniglot(data_dir=tmp_path, rotations=False).load()
    assert len(data.classes) == 17 + 25
    assert len(data.labels) == 20 * len(data.classes)
    ink = data.examples.float().mean(dim=(1, 2, 3)) / 255
    assert 0.01 < ink.min() < ink.max() < 0.4
