"""A folder of images loads in one order, and what cannot be read is named."""

import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from metaleak.clients.datasets import MNIST, DataSet, ImageFolder, image_folder


def picture() -> bytes:
    """A PNG file of 105x105 pixels."""
    file = BytesIO()
    Image.fromarray(np.eye(105, dtype=bool)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path) -> Path:
    """Two classes of two wide images: blue at the left edge, class-colored in the middle square."""
    for label, color in (("cats", (255, 0, 0)), ("birds", (0, 255, 0))):
        (folder / label).mkdir(parents=True)
        for number in (2, 1):
            image = Image.new("RGB", (60, 40), (0, 0, 255))
            image.paste((*color[:2], number), (10, 0, 50, 40))
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
    data = ImageFolder(path=tmp_path / "pictures", size=8, gray=False).load()
    assert data.classes == ("birds", "cats")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.examples.shape == (4, 3, 8, 8)
    assert data.examples[:, :, 4, 4].tolist() == [[0, 255, 1], [0, 255, 2], [255, 0, 1], [255, 0, 2]]
    assert int(data.examples[:, 2].max()) < 30, "only the central square is left"
    gray = ImageFolder(path=tmp_path / "pictures", size=8, gray=True).load()
    assert gray.examples.shape == (4, 1, 8, 8)
    (tmp_path / "pictures" / "cats" / "0.jpg").write_bytes((tmp_path / "pictures" / "cats" / "1.png").read_bytes())
    assert len(ImageFolder(path=tmp_path / "pictures", size=8).load().labels) == 5


def test_a_damaged_image_with_a_palette_is_named_too(
    tmp_path: Path, cache: Path, complaint: Callable[[DataSet], str]
) -> None:
    folder = write_images(tmp_path / "pictures")
    whole = BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).convert("P").save(whole, "png")
    (folder / "cats" / "1.png").write_bytes(whole.getvalue()[:-60])
    said = complaint(ImageFolder(path=folder))
    assert "cats/1.png is damaged" in said


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
    said = complaint(ImageFolder(path=folder, size=8))
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


def write_squares(folder: Path, classes: int = 2, mode: str = "RGB", size: int = 12) -> Path:
    """Classes a, b, ... of two random square images each."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * classes, size, size, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = folder / "abcdefghij"[row // 2] / f"{row % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(path)
    return folder


def test_images_keep_their_size_and_colors_by_default(tmp_path: Path) -> None:
    data = ImageFolder(path=write_squares(tmp_path / "pictures")).load()
    assert data.examples.shape == (4, 3, 12, 12)
    own = np.asarray(Image.open(tmp_path / "pictures" / "b" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(data.examples[2].numpy(), own), "not a pixel is changed"
    assert ImageFolder(path=tmp_path / "pictures", size=8).load().examples.shape == (4, 3, 8, 8)
    assert ImageFolder(path=tmp_path / "pictures", gray=True).load().examples.shape == (4, 1, 12, 12)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_images_are_gray_where_every_file_is(mode: str, channels: int, tmp_path: Path) -> None:
    assert ImageFolder(path=write_squares(tmp_path / "pictures", mode=mode)).load().examples.shape == (
        4,
        channels,
        12,
        12,
    )
    Image.new("L", (12, 12)).quantize(4).save(tmp_path / "pictures" / "a" / "2.png")
    assert ImageFolder(path=tmp_path / "pictures").load().examples.shape == (5, channels, 12, 12), (
        "a palette of grays"
    )
    Image.new("RGB", (12, 12)).save(tmp_path / "pictures" / "a" / "3.png")
    assert ImageFolder(path=tmp_path / "pictures").load().examples.shape == (6, 3, 12, 12), (
        "one in color makes all so"
    )


def test_images_of_several_sizes_need_a_size(tmp_path: Path, complaint: Callable[[DataSet], str]) -> None:
    assert "60x40 pixels, which is no square of 4 to 1024: choose a size" in complaint(
        ImageFolder(path=write_images(tmp_path / "wide"))
    )
    folder = write_squares(tmp_path / "mixed")
    Image.new("RGB", (9, 9)).save(folder / "b" / "2.png")
    said = complaint(ImageFolder(path=folder))
    assert f"{folder / 'a' / '0.png'} has 12x12 pixels, {folder / 'b' / '2.png'} 9x9: choose a size" in said
    assert ImageFolder(path=folder, size=8).load().examples.shape == (5, 3, 8, 8)


def test_too_many_pixels_are_refused_before_one_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: Callable[[DataSet], str]
) -> None:
    monkeypatch.setattr(image_folder, "_MAX_BYTES", 4 * 3 * 12 * 12 - 1)
    monkeypatch.setattr(image_folder, "decode", lambda *given: pytest.fail("decoded"))
    assert "choose a smaller size" in complaint(ImageFolder(path=write_squares(tmp_path / "pictures")))


def test_classes_are_held_out_by_name(tmp_path: Path, complaint: Callable[[DataSet], str]) -> None:
    folder = write_squares(tmp_path / "pictures", classes=5)
    (folder / "e").rename(folder / "7")
    assert ImageFolder(path=folder).load().held_out_classes == frozenset()
    data = ImageFolder.model_validate({"path": folder, "held_out_classes": [7, "c"]}).load()
    assert {data.classes[label] for label in data.held_out_classes} == {"7", "c"}
    assert "has 'cat', which is not a folder in" in complaint(ImageFolder(path=folder, held_out_classes=("cat",)))
    assert "keeps 4 of the 5 classes" in complaint(ImageFolder(path=folder, held_out_classes=("7", "a", "b", "c")))
    for wrong in (1, 1.5, "cats", [None]):
        with pytest.raises(ValidationError, match="a list of class names, or a fraction above 0 and below 1"):
            ImageFolder.model_validate({"path": folder, "held_out_classes": wrong})


def test_a_fraction_of_the_classes_is_held_out_by_a_seed(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "pictures", classes=10)

    def held_out(seed: int) -> set[str]:
        data = ImageFolder(path=folder, held_out_classes=0.3, held_out_seed=seed).load()
        return {data.classes[label] for label in data.held_out_classes}

    before = held_out(0)
    assert len(before) == 3
    assert len({frozenset(held_out(seed)) for seed in range(5)}) > 1
    write_squares(folder / "zebra", classes=1)
    (folder / "zebra" / "a").rename(folder / "z")
    (folder / "zebra").rmdir()
    assert held_out(0) - {"z"} <= before, "a new class moves no other into the held-out ones"
