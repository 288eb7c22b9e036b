"""A folder of the user's own images."""

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from metaleak.clients.datasets.cache import digest, kept_images
from metaleak.clients.datasets.dataset import LabelledImages
from metaleak.clients.datasets.decoding import decode

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_BYTES = 8 << 30


class ImageFolder(BaseModel):
    """Images laid out one folder a class: `path/<class>/<image>`.

    Every image's central square is resized to `size` x `size` pixels; `grey: true` makes one channel, `false`
    three. Hidden files and files that are not images by their name are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    size: Annotated[int, Field(ge=4, le=1024)] = 28
    grey: bool = True

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # An actor loads the data, and its working directory is not the one of the user who wrote the path.
        return value.expanduser().absolute()

    def load(self) -> LabelledImages:
        """Return `images (n, 1 or 3, size, size)`, ordered by class and file name.

        Raises `ValueError` when there are fewer than two classes, a class without an image, too many images
        for memory, or an image that cannot be read.
        """
        folders = self._class_folders()
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(file for file in folder.iterdir() if _is_image(file))
            if not found:
                raise ValueError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
            files += found
            labels += [label] * len(found)
        size_in_memory = len(files) * (1 if self.grey else 3) * self.size * self.size
        if size_in_memory > _MAX_BYTES:
            raise ValueError(
                f"{self.path} holds {len(files)} images, {size_in_memory >> 30} GiB at size {self.size}, "
                f"more than {_MAX_BYTES >> 30} GiB: choose a smaller size"
            )
        stamps = [f"{file.relative_to(self.path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        key = digest("folder 1", str(self.path), str(self.size), str(self.grey), *stamps)
        return LabelledImages(
            images=torch.from_numpy(kept_images(f"folder-{key}", lambda: self._decode(files))),
            labels=torch.tensor(labels),
            classes=tuple(folder.name for folder in folders),
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

    def _decode(self, files: list[Path]) -> npt.NDArray[np.uint8]:
        images = np.empty((len(files), 1 if self.grey else 3, self.size, self.size), dtype=np.uint8)
        for row, path in enumerate(files):
            with path.open("rb") as file:
                images[row] = decode(file, str(path), self.size, self.grey)
        return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
