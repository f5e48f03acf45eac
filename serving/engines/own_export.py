"""A version answered by a file of its own export, where its weights cannot be swapped into another.

int8 models have their weights quantised by what the task's images are like; a TensorRT plan that
was not built to be refitted has its weights for good. Each takes memory of its own, as merged
weights do: the file is loaded when its task is asked for, and let go when others need the room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glora_deploy.precision import Precision
from glora_deploy.store.export_record import FILES, ExportRecord, Format
from glora_deploy.store.manifest import Manifest

from ..errors import LoadError
from ..one_export import of_one_export


class Model(Protocol):
    """What a file becomes."""

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``."""
        ...


class OwnExport:
    """One version's exported file.

    Args:
        folder: Of the version's export.
        precision: Of the export.
        written: The format to answer from.
        load: Opens it.
    """

    def __init__(
        self, folder: Path, precision: Precision, written: Format, load: Callable[[Path], Model]
    ) -> None:
        self._folder = folder
        self._precision = precision
        self._format = written
        self._load = load
        self._size_bytes = sum((folder / name).stat().st_size for name in FILES[written])

    def size_of(self, manifest: Manifest) -> int:
        """As ``MergingNetwork.size_of``: as much as its files."""
        return self._size_bytes

    def merge(self, manifest: Manifest, delta: Mapping[str, NDArray[Any]]) -> Model:
        """As ``MergingNetwork.merge``, which the export has done: its files, verified and loaded.

        Raises:
            ArtifactError: If a file was altered, or is of another delta.
            LoadError: If the export holds no such file, or did not pass its parity check.
            GloraDeployError: Of ``load``.
        """
        return of_one_export(self._folder, lambda: self._read(manifest))

    def run(self, weights: Model, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``."""
        return weights.logits(images)

    def _read(self, manifest: Manifest) -> Model:
        record = ExportRecord.usable_of(self._folder, manifest, self._precision, self._format)
        if record is None:
            raise LoadError(
                f"{manifest.task}/{manifest.version}: must have a usable export to "
                f"{self._format} in {self._precision}, got none"
            )
        for name in FILES[self._format]:
            record.require_intact(self._folder, name)
        return self._load(self._folder)
