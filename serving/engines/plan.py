"""A backbone's network as a TensorRT plan on a GPU.

A plan that was built to be refitted is one engine for every task of its backbone with as many
classes: a swap gives it other weights. Any other plan has one task's weights for good
(``own_export``). Either takes as many images at once as it was built for; batches are cut to that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import ArtifactError, ExportError, StoreError
from glora_deploy.precision import PRECISIONS, Precision, is_float
from glora_deploy.record_file import read_record
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import SIDECAR_FILE, ExportRecord
from glora_deploy.store.mapped_safetensors import TensorMap
from glora_deploy.store.reader import StoreReader
from glora_deploy.tensorrt_runtime.plan_json import PlanInfo

from ..errors import LoadError
from ..one_export import of_one_export
from .network import Slot, SlotLayout
from .stored_graph import candidates


class Engine(Protocol):
    """What is used of ``tensorrt_runtime.engine.Engine``."""

    info: PlanInfo

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Engine.logits`` there."""
        ...

    def refit(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """As ``Engine.refit`` there."""
        ...


OpenEngine = Callable[[Path], Engine]


def open_engine(folder: Path) -> Engine:
    """The plan of an export folder on this machine's GPU."""
    from glora_deploy.tensorrt_runtime.engine import Engine  # and torch

    return Engine(folder)


class PlanModel:
    """A plan that answers for one task.

    Args:
        folder: Holds ``model.plan`` and ``plan.json``.
        open_it: Loads it.

    Raises:
        GloraDeployError: As ``tensorrt_runtime.engine.Engine``.
    """

    def __init__(self, folder: Path, open_it: OpenEngine = open_engine) -> None:
        self._engine = open_it(folder)
        self._lock = threading.Lock()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``own_export.Model.logits``."""
        with self._lock:
            return cut_to_plan(self._engine, images)


@dataclass(eq=False)
class PlanWeights:
    """A task's weights, as a refit takes them."""

    tensors: Mapping[str, NDArray[Any]]


class RefittedPlan:
    """One plan for every task of a backbone that has as many classes.

    Args:
        folder: Holds a plan that was built to be refitted.
        precision: Of its weights.
        frozen: The backbone's tensors.
        adapted: Names of the tensors that deltas adapt.
        head: Names of the classifier's tensors.
        open_it: Loads it.

    Raises:
        LoadError: If the plan has a weight that neither backbone nor classifier has.
        GloraDeployError: As ``tensorrt_runtime.engine.Engine``.
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision,
        frozen: TensorMap,
        *,
        adapted: Collection[str],
        head: Collection[str],
        open_it: OpenEngine = open_engine,
    ) -> None:
        self._open: Callable[[], Engine] = partial(open_it, folder)
        self._engine: Engine | None = self._open()
        parameters = self._engine.info.parameters
        if missing := sorted(set(parameters) - frozen.keys() - set(head)):
            raise LoadError(f"the backbone must hold {missing[0]}, which its plan reads")
        dtype = PRECISIONS[precision]
        slots = [Slot(name=n, shape=frozen[n].shape) for n in parameters if n in adapted]
        self.layout = SlotLayout(slots, dtype)
        self.head = tuple(sorted(head))
        with np.errstate(over="ignore"):  # the export was proven with these very numbers
            self._fixed = {
                name: frozen[name].astype(dtype, copy=False)
                if is_float(frozen[name].dtype)
                else frozen[name]
                for name in parameters
                if name not in self.layout.slots and name not in head
            }
        self._holds: weakref.ref[PlanWeights] | None = None
        self._lock = threading.Lock()

    def bind(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> PlanWeights:
        """As ``Network.bind``."""
        return PlanWeights({**self._fixed, **slots, **head})

    def fix(
        self, slots: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]]
    ) -> PlanWeights | None:
        """As ``Network.fix``: a plan is laid out when it is built."""
        return None

    def run(self, weights: PlanWeights, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As ``Network.run``; one batch at a time."""
        with self._lock:
            engine = self._engine = self._engine or self._open()
            if self._holds is None or self._holds() is not weights:
                self._holds = None
                try:
                    engine.refit(weights.tensors)
                except ExportError:  # it may hold half of each task: the next run loads it anew
                    self._engine = None
                    raise
                self._holds = weakref.ref(weights)
            return cut_to_plan(engine, images)


def cut_to_plan(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of any number of images, in as many calls as the plan needs."""
    least, _, most = engine.info.batch
    found = []
    for first in range(0, len(images), most):
        part = images[first : first + most]
        if (n := len(part)) < least:
            part = np.concatenate([part, np.zeros((least - n, *part.shape[1:]), np.float32)])
        found.append(engine.logits(part)[:n])
    return np.concatenate(found)


def find_refittable(
    store: StoreReader, artifact: Artifact, precision: Precision, others: Iterable[Artifact]
) -> Path | None:
    """The export folder of a proven plan that an artifact's weights fit into; None without one.

    Args:
        store: Where to look.
        artifact: Of any delta on the backbone.
        precision: Of the plan.
        others: More artifacts whose plans may do; those of other networks, or with another number
            of classes, are passed over.
    """
    for candidate in candidates(artifact, precision, others):
        if len(candidate.manifest.labels) != len(artifact.manifest.labels):
            continue
        info = plan_of(store, candidate, precision)
        if info is not None and info.refittable:
            return store.export_dir(candidate, precision)
    return None


def plan_of(store: StoreReader, artifact: Artifact, precision: Precision) -> PlanInfo | None:
    """What the proven plan of an artifact's own export is; None without one.

    The plan itself is compared with this when it is loaded.
    """
    folder = store.export_dir(artifact, precision)

    def read() -> PlanInfo | None:
        record = ExportRecord.usable_of(folder, artifact.manifest, precision, "trt")
        if record is None:
            return None
        record.require_intact(folder, SIDECAR_FILE)
        return read_record(PlanInfo, folder / SIDECAR_FILE, "Build the plan again.")

    try:
        return of_one_export(folder, read)
    except (ArtifactError, StoreError, OSError):
        return None
