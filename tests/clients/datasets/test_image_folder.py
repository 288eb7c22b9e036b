"""A folder of images loads in one order, and what cannot be read is named."""

import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaleak.clients.datasets import (
    MNIST,
    DataSet,
    ImageFolder,
)


def picture() -> bytes:
    """A PNG file of 105x105 pixels."""
    file = BytesIO()
    Image.fromarray(np.eye(105, dtype=bool)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path) -> Path:
    """Two classes of two wide images: blue at the left edge, class-coloured in the middle square."""
    for label, colour in (("cats", (255, 0, 0)), ("birds", (0, 255, 0))):
        (folder / label).mkdir(parents=True)
        for number in (2, 1):
            image = Image.new("RGB", (60, 40), (0, 0, 255))
            image.paste((*colour[:2], number), (10, 0, 50, 40))
            image.save(folder / label / f"{number}.png")
        (folder / label / ".hidden.png").write_bytes(b"not an image")
        (folder / label / "notes.txt").write_text("not an image")
    (folder / ".thumbnails").mkdir()
    return folder


def bomb() -> bytes:
    """A PNG of a few bytes whose head says 60 000 x 60 000 pixels."""
    content = bytearray(picture())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def deep() -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(file, "PNG")
    return file.getvalue()


def test_a_folder_of_images_is_sorted_cut_and_resized(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    data = ImageFolder(path=tmp_path / "pictures", size=8, grey=False).load()
    assert data.classes == ("birds", "cats")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 8, 8)
    assert data.images[:, :, 4, 4].tolist() == [[0, 255, 1], [0, 255, 2], [255, 0, 1], [255, 0, 2]]
    assert int(data.images[:, 2].max()) < 30, "only the central square is left"
    grey = ImageFolder(path=tmp_path / "pictures", size=8).load()
    assert grey.images.shape == (4, 1, 8, 8)
    (tmp_path / "pictures" / "cats" / "0.jpg").write_bytes((tmp_path / "pictures" / "cats" / "1.png").read_bytes())
    assert len(ImageFolder(path=tmp_path / "pictures", size=8).load().labels) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (picture()[:-60], "is damaged"),
        (b"text", "of no known format"),
        (b"", "of no known format"),
        (bomb(), "pixels"),
        (deep(), "more than 8 bits"),
    ],
    ids=["truncated", "text", "empty", "bomb", "16 bits"],
)
def test_an_image_that_cannot_be_read_is_named(
    content: bytes, message: str, tmp_path: Path, cache: Path, complaint: Callable[[DataSet], str]
) -> None:
    folder = write_images(tmp_path / "pictures")
    (folder / "cats" / "3.png").write_bytes(content)
    said = complaint(ImageFolder(path=folder))
    assert str(folder / "cats" / "3.png") in said
    assert message in said
    assert not list(cache.glob("*"))


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, complaint: Callable[[DataSet], str]) -> None:
    assert "which is not a folder" in complaint(ImageFolder(path=tmp_path / "none"))
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    assert "has 1 class folders, at least 2" in complaint(ImageFolder(path=tmp_path / "pictures"))
    (tmp_path / "pictures" / "dogs").mkdir()
    assert "cats holds no image" in complaint(ImageFolder(path=tmp_path / "pictures"))


def test_relative_paths_are_those_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, data = ImageFolder(path=Path("pictures")), MNIST(data_dir=Path("data"))
    os.chdir("/")
    assert (folder.path, data.data_dir) == (tmp_path / "pictures", tmp_path / "data")
