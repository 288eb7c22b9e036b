"""Omniglot: handwritten characters of 50 alphabets, 20 drawings each (Lake et al. 2015)."""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from metaleak.clients.datasets.cache import cache_directory, digest, kept_directory, kept_images
from metaleak.clients.datasets.dataset import LabeledExamples
from metaleak.clients.datasets.decoding import decode
from metaleak.clients.datasets.published import Published

_ARCHIVES = ("images_background.zip", "images_evaluation.zip")
_SUBFOLDERS = ("omniglot", "omniglot-py", ".")
_DRAWING = re.compile(r"[^/]+/([^/.][^/]*/[^/.][^/]*)/[^/.][^/]*\.png")
_MAX_DRAWINGS = 100_000
_MAX_BYTES = 1 << 20


class Omniglot(Published):
    """Omniglot's 1 623 characters (Lake et al. 2015): 964 of the background set for learners, 659 for evaluation.

    `rotations: true` makes four classes of each background character, rotated by 0, 90, 180 and 270 degrees
    (Santoro et al. 2016); evaluation characters stay upright. `data_dir` holds the two published archives, directly,
    in `omniglot/` or in torchvision's `omniglot-py/`.
    """

    size: Annotated[int, Field(ge=4, le=105)] = 28
    rotations: bool = True

    def load(self) -> LabeledExamples:
        """Return `images (n, 1, size, size)`, ink 255 on paper 0; n is 90 300 with rotations, else 32 460.

        Raises `ValueError` when an archive is missing or damaged.
        """
        folder = self._folder()
        listings = [_drawings(folder / archive) for archive in _ARCHIVES]
        key = digest("omniglot 1", str(self.size), *(folder / archive for archive in _ARCHIVES))
        drawn = torch.from_numpy(kept_images(f"omniglot-{key}", lambda: self._decode(folder, listings)))
        background, evaluation = drawn[: len(listings[0])], drawn[len(listings[0]) :]
        names, labels = _labels(listings[0])
        held_names, held_labels = _labels(listings[1])
        turns = 4 if self.rotations else 1
        learned = len(names) * turns
        return LabeledExamples(
            examples=torch.cat([*(background.rot90(turn, (2, 3)) for turn in range(turns)), evaluation]),
            labels=torch.cat([*(labels + turn * len(names) for turn in range(turns)), held_labels + learned]),
            classes=(
                *(f"{name} turned {90 * turn}" if turn else name for turn in range(turns) for name in names),
                *held_names,
            ),
            held_out_classes=frozenset(range(learned, learned + len(held_names))),
        )

    def _folder(self) -> Path:
        found = self.find(_SUBFOLDERS, _ARCHIVES)
        if found is not None:
            return found
        if self.download:
            return kept_directory("omniglot-downloaded", _fetch)
        if (cache_directory() / "omniglot-downloaded").is_dir():
            return cache_directory() / "omniglot-downloaded"
        raise self.missing("Omniglot", _SUBFOLDERS, _ARCHIVES)

    def _decode(self, folder: Path, listings: list[list[str]]) -> npt.NDArray[np.uint8]:
        images = []
        for archive, listing in zip(_ARCHIVES, listings, strict=True):
            with zipfile.ZipFile(folder / archive) as packed:
                for name in listing:
                    source = f"{folder / archive}: {name}"
                    try:
                        with packed.open(name) as file:
                            images.append(decode(file, source, self.size, gray=True))
                    # RuntimeError: encrypted, or packed by an unknown method.
                    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                        raise ValueError(f"{source} is damaged: {error}") from error
        # The archives have black ink on white paper.
        return np.stack(images) ^ np.uint8(255)


def _drawings(archive: Path) -> list[str]:
    """Return the names of the drawings in `archive`, sorted; their folders are alphabet and character."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if _DRAWING.fullmatch(entry.filename)]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is damaged: {error}") from error
    if not entries:
        raise ValueError(f"{archive} holds no drawing, as <set>/<alphabet>/<character>/<drawing>.png")
    if len(entries) > _MAX_DRAWINGS or max(entry.file_size for entry in entries) > _MAX_BYTES:
        raise ValueError(f"{archive} is not Omniglot: it has too many drawings, or too large ones")
    return sorted({entry.filename for entry in entries})


def _labels(drawings: Sequence[str]) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return the characters, sorted, and the number of each drawing's character, `(len(drawings),)` int64."""
    characters = ["/".join(name.split("/")[1:3]) for name in drawings]
    names = tuple(sorted(set(characters)))
    numbers = {name: number for number, name in enumerate(names)}
    return names, torch.tensor([numbers[character] for character in characters])


def _fetch(target: Path) -> None:
    import torchvision.datasets
    from torchvision.datasets.utils import download_url

    published = torchvision.datasets.Omniglot
    for archive in _ARCHIVES:
        checksum = published.zips_md5[archive.removesuffix(".zip")]
        try:
            download_url(f"{published.download_url_prefix}/{archive}", str(target), archive, checksum)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"Omniglot cannot be downloaded: {' '.join(str(error).split())}") from error
