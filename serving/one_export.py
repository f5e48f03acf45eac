"""Reading the files of an export while another export may take its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from glora_deploy.errors import GloraDeployError, StoreError
from glora_deploy.store.folder_lock import OpenFolder

T = TypeVar("T")


def of_one_export(folder: Path, load: Callable[[], T]) -> T:
    """What is loaded from a folder, all of it before another export took the folder's place.

    Args:
        folder: Of the export.
        load: Reads from it; called again if what it read may be of two exports.

    Raises:
        GloraDeployError: Of ``load``, while the folder is where it was.
        StoreError: If there is no folder.
    """
    while True:
        try:
            there = OpenFolder(folder)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{folder}: no export is here.") from None
        with there:
            try:
                found = load()
            except (GloraDeployError, OSError):
                if there.in_place():
                    raise
                continue
            if there.in_place():
                return found
