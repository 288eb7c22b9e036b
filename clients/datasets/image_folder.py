"""A folder of the user's own images."""

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from metaleak.clients.datasets.cache import digest, kept_images
from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.datasets.decoding import decode, head

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_BYTES = 8 << 30
_SMALLEST, _LARGEST = 4, 1024


class ImageFolder(BaseModel):
    """Images in one folder per class: `path/<class>/<image>`.

    With `size: null` the images keep their own size, which must be the same square for all of them; with a number,
    the central square of every image is resized to that many pixels. `gray: true` makes one channel, `false` three;
    `null` makes one if all files have a gray pixel format, and three otherwise. `held_out_classes` are kept for
    evaluation tasks only: a list of class names, or the fraction of the classes that is drawn by `held_out_seed`.
    With an empty list, images of every class are held out instead. Hidden files, and files whose names are not those
    of images, are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    size: Annotated[int, Field(ge=_SMALLEST, le=_LARGEST)] | None = None
    gray: bool | None = None
    held_out_classes: tuple[str, ...] | float = ()
    held_out_seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # An actor loads the data, and its working directory is not the one of the user who wrote the path.
        return value.expanduser().absolute()

    @field_validator("held_out_classes", mode="before")
    @classmethod
    def _names_or_a_fraction(cls, value: object) -> tuple[str, ...] | float:
        if isinstance(value, list | tuple) and all(isinstance(name, str | int) for name in value):
            # YAML reads the name of a folder such as 7 as a number.
            return tuple(str(name) for name in value)
        if isinstance(value, float) and 0 < value < 1:
            return value
        raise ValueError("must be a list of class names, or a fraction above 0 and below 1")

    def load(self) -> LabeledExamples:
        """Return `images (n, 1 or 3, size, size)`, ordered by class and file name.

        Raises `ValueError` for fewer than two classes, a class without an image, too many images for the memory, an
        image that cannot be read, images of several sizes without a `size`, and a held-out class that does not exist.
        """
        folders = self._class_folders()
        classes = tuple(folder.name for folder in folders)
        held_out = self._held_out(classes)
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(file for file in folder.iterdir() if _is_image(file))
            if not found:
                raise ValueError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
            files += found
            labels += [label] * len(found)
        stamps = [f"{file.relative_to(self.path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        key = digest("folder 2", str(self.path), str(self.size), str(self.gray), *stamps)
        return LabeledExamples(
            examples=torch.from_numpy(kept_images(f"folder-{key}", lambda: self._decode(files))),
            labels=torch.tensor(labels),
            classes=classes,
            held_out_classes=held_out,
            names=tuple(file.relative_to(self.path).as_posix() for file in files),
        )

    def _class_folders(self) -> list[Path]:
        if not self.path.is_dir():
            raise ValueError(f"path is {self.path}, which is not a folder")
        folders = sorted(
            folder for folder in self.path.iterdir() if folder.is_dir() and not folder.name.startswith(".")
        )
        if len(folders) < 2:
            raise ValueError(f"{self.path} has {len(folders)} class folders, at least 2 are needed")
        return folders

    def _held_out(self, classes: tuple[str, ...]) -> frozenset[int]:
        if isinstance(self.held_out_classes, float):
            # Drawn by name: a class that is added later does not change the draw of the others.
            order = sorted(range(len(classes)), key=lambda label: digest(str(self.held_out_seed), classes[label]))
            chosen = frozenset(order[: max(1, round(self.held_out_classes * len(classes)))])
        else:
            for name in self.held_out_classes:
                if name not in classes:
                    raise ValueError(f"held_out_classes has {name!r}, which is not a folder in {self.path}")
            chosen = frozenset(classes.index(name) for name in self.held_out_classes)
        if len(chosen) > len(classes) - 2:
            raise ValueError(
                f"held_out_classes keeps {len(chosen)} of the {len(classes)} classes in {self.path}, "
                "learners need at least 2"
            )
        return chosen

    def _decode(self, files: list[Path]) -> npt.NDArray[np.uint8]:
        size, gray = self._form(files)
        bytes_needed = len(files) * (1 if gray else 3) * size * size
        if bytes_needed > _MAX_BYTES:
            raise ValueError(
                f"{self.path} holds {len(files)} images, {bytes_needed >> 30} GiB at size {size}, "
                f"more than {_MAX_BYTES >> 30} GiB: choose a smaller size"
            )
        images = np.empty((len(files), 1 if gray else 3, size, size), dtype=np.uint8)
        for row, path in enumerate(files):
            with path.open("rb") as file:
                images[row] = decode(file, str(path), size, gray)
        return images

    def _form(self, files: list[Path]) -> tuple[int, bool]:
        """Return the size in pixels, and whether the images are gray; where not set, the files' headers decide."""
        if self.size is not None and self.gray is not None:
            return self.size, self.gray
        heads = []
        for path in files:
            with path.open("rb") as file:
                heads.append(head(file, str(path)))
        first, choose = heads[0], "choose a size, to which each image's central square is resized"
        if self.size is None:
            for path, other in zip(files, heads, strict=True):
                if other[:2] != first[:2]:
                    sizes = f"{files[0]} has {first.width}x{first.height} pixels, {path} {other.width}x{other.height}"
                    raise ValueError(f"{sizes}: {choose}")
            if first.width != first.height or not _SMALLEST <= first.width <= _LARGEST:
                raise ValueError(
                    f"{files[0]} has {first.width}x{first.height} pixels, "
                    f"which is no square of {_SMALLEST} to {_LARGEST}: {choose}"
                )
        return self.size or first.width, all(one.gray for one in heads) if self.gray is None else self.gray


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
