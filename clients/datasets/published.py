"""Finding published archives on this machine, and the error when they are missing."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

VARIABLE = "METALEAK_DATA"
"""The environment variable that names the folder of data sets when a data set's `data_dir` does not."""


class Published(BaseModel):
    """The fields of a data set that is published as archives.

    `data_dir` is the folder of data sets, by default the one that the environment variable `METALEAK_DATA` of the
    loading process names; nothing is written there. `download: true` allows missing archives to be fetched into the
    cache directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path | None = None
    download: bool = False

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # An actor loads the data, and its working directory is not the one of the user who wrote the path.
        return None if value is None else value.expanduser().absolute()

    def folder(self) -> Path | None:
        """Return the folder of data sets, or `None` when none is named.

        Raises `ValueError` when the one that is named is not a folder.
        """
        named = os.environ.get(VARIABLE)
        folder = self.data_dir or (Path(named).expanduser().absolute() if named else None)
        if folder is not None and not folder.is_dir():
            source = "data_dir" if self.data_dir else VARIABLE
            raise ValueError(f"{source} is {folder}, which is not a folder")
        return folder

    def find(self, subfolders: tuple[str, ...], files: tuple[str, ...]) -> Path | None:
        """Return the first of `subfolders` of the data folder that holds all `files`, or `None`."""
        folder = self.folder()
        if folder is None:
            return None
        for subfolder in subfolders:
            if all((folder / subfolder / file).is_file() for file in files):
                return folder / subfolder
        return None

    def missing(self, name: str, subfolders: tuple[str, ...], files: tuple[str, ...]) -> ValueError:
        """Return an error that says where `name` was looked for and how to get it."""
        folder = self.folder()
        if folder is None:
            place = f"no data_dir is given and {VARIABLE} is not set"
        else:
            # The folder with most of the files is probably the one that the user meant.
            best = max(subfolders, key=lambda sub: sum((folder / sub / file).is_file() for file in files))
            absent = [file for file in files if not (folder / best / file).is_file()]
            place = f"{folder / best} lacks {', '.join(absent)}"
        return ValueError(f"{name} was not found: {place} (download: true fetches it)")
