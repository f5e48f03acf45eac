"""Which network a version runs on: one per backbone, architecture and set of adapted tensors."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from glora_deploy.errors import BackboneMismatchError, NotRunnableError
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import INT8_FILE, ExportRecord, Format
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import TensorMap, map_tensors
from glora_deploy.store.reader import BACKBONE_WEIGHTS, StoreReader

from ..engines.mixed import MixedNetwork, can_be_mixed, linear_layers
from ..engines.network import MergingNetwork, Network
from ..engines.onnx_runtime import OnnxNetwork
from ..engines.own_export import OwnExport
from ..engines.plan import PlanModel, RefittedPlan, find_refittable, plan_of
from ..engines.stored_graph import find_graph
from ..errors import LoadError
from ..export_command import export_command
from ..onnx_session import Device, OnnxSession
from .merge_task import adapted_tensors
from .settings import EngineSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, and the frozen tensors that its tasks are merged from.

    It is one for batches of many tasks where the deltas, the network and the settings allow it.
    """

    network: Network[Any] | MergingNetwork[Any] | MixedNetwork
    frozen: Mapping[str, NDArray[Any]]


class Networks:
    """Every network that the versions of a store need, each made once; safe for many threads.

    Args:
        store: Holds backbones and graphs.
        settings: Say on which runtime, and how.

    Raises:
        NotRunnableError: If they ask for a GPU, and there is none for PyTorch or TensorRT.
    """

    def __init__(self, store: StoreReader, settings: EngineSettings) -> None:
        _require_gpu(settings)
        self._store = store
        self._settings = settings
        self._backbones: dict[str, TensorMap] = {}
        self._networks: dict[Hashable, Loaded] = {}
        self._lock = threading.Lock()

    @property
    def backbone_bytes(self) -> int:
        """Of all backbones, mapped once each."""
        with self._lock:
            return sum(t.nbytes for frozen in self._backbones.values() for t in frozen.values())

    def exported_of(self, artifact: Artifact) -> Format | None:
        """The format of a version's own export that it is to be answered from; None for none.

        Raises:
            ArtifactError: If the record of its export is damaged, or of another delta.
        """
        precision = self._settings.precision
        if self._settings.backend == "tensorrt":
            plan = plan_of(self._store, artifact, precision)
            return None if plan is None or plan.refittable else "trt"
        if not self._settings.int8:
            return None
        folder = self._store.export_dir(artifact, precision)
        found = ExportRecord.usable_of(folder, artifact.manifest, precision, "int8")
        return None if found is None else "int8"

    def of(
        self,
        artifact: Artifact,
        exported: Format | None,
        others: Callable[[], Iterable[Artifact]],
    ) -> Loaded:
        """The network of a version; made now if no version before had the same.

        Args:
            artifact: The version.
            exported: As ``exported_of`` says.
            others: Artifacts whose exports may hold its graph.

        Raises:
            StoreError: If the store does not keep the backbone.
            BackboneMismatchError: If the backbone is not the one the delta was trained on.
            LoadError: If the store holds no graph of it.
            ExportError: If the runtime refuses the graph.
            MissingDependencyError: If the runtime is missing.
        """
        if exported is not None:
            return Loaded(self._own(artifact, exported), {})
        key = self._key(artifact)
        with self._lock:
            if (found := self._networks.get(key)) is None:
                found = self._networks[key] = self._make(artifact, others())
            return found

    def _own(self, artifact: Artifact, exported: Format) -> OwnExport:
        precision, threads = self._settings.precision, self._settings.threads
        folder = self._store.export_dir(artifact, precision)
        if exported == "trt":
            return OwnExport(folder, precision, "trt", PlanModel)
        return OwnExport(folder, precision, "int8", lambda at: OnnxSession(at / INT8_FILE, threads))

    def _key(self, artifact: Artifact) -> Hashable:
        backbone = artifact.manifest.backbone
        key: tuple[Hashable, ...] = (
            backbone.fingerprint,
            backbone.name,
            json.dumps(backbone.model_args, sort_keys=True),
            backbone.input_size,
            backbone.classifier,
            tuple(sorted(artifact.manifest.head)),
            adapted_tensors(artifact.manifest),
            can_be_mixed(artifact.manifest),
        )
        if self._settings.backend == "tensorrt":
            key = (*key, len(artifact.manifest.labels))
        # Below fp32 the graph itself is the task's.
        own = artifact.manifest.adapter.sha256 if self._settings.precision != "fp32" else ""
        return (*key, own)

    def _make(self, artifact: Artifact, others: Iterable[Artifact]) -> Loaded:
        manifest, settings = artifact.manifest, self._settings
        frozen = self._frozen(artifact)
        if settings.backend == "torch":
            return Loaded(_torch_network(manifest, frozen, settings.device), frozen)
        if settings.backend == "tensorrt":
            return Loaded(self._make_refitted(artifact, frozen, others), frozen)
        graph = find_graph(self._store, artifact, settings.precision, others)
        weights = self._store.backbone_path(manifest.backbone.fingerprint) / BACKBONE_WEIGHTS
        if (mixed := self._make_mixed(manifest, graph, weights, frozen)) is not None:
            return Loaded(mixed, frozen)
        network = OnnxNetwork(
            graph,
            weights,
            frozen,
            adapted=adapted_tensors(manifest),
            head=tuple(manifest.head),
            threads=settings.threads,
            device=settings.device,
        )
        return Loaded(network, frozen)

    def _make_refitted(
        self, artifact: Artifact, frozen: TensorMap, others: Iterable[Artifact]
    ) -> RefittedPlan:
        manifest, precision = artifact.manifest, self._settings.precision
        folder = find_refittable(self._store, artifact, precision, others)
        if folder is None:
            command = export_command(artifact.task, "trt", precision, "--store", "STORE")
            raise LoadError(
                f"{artifact.task}/{artifact.version}: the store must hold a TensorRT plan "
                "of it, or one built to be refitted of a task with as many classes, got none that "
                f"passed its parity check. Run: {command}"
            )
        return RefittedPlan(
            folder,
            precision,
            frozen,
            adapted=adapted_tensors(manifest),
            head=tuple(manifest.head),
        )

    def _make_mixed(
        self, manifest: Manifest, graph: onnx.ModelProto, weights: Path, frozen: TensorMap
    ) -> MixedNetwork | None:
        settings = self._settings
        wanted = settings.mixed_batches == "auto" and settings.device == "cpu"
        if not wanted or settings.precision != "fp32" or not can_be_mixed(manifest):
            return None
        try:
            return MixedNetwork(
                graph,
                weights,
                frozen,
                layers=linear_layers(manifest),
                head=tuple(manifest.head),
                threads=settings.threads,
            )
        except LoadError as error:
            log.info("%s: tasks do not share batches: %s", manifest.backbone.name, error)
            return None

    def _frozen(self, artifact: Artifact) -> TensorMap:
        """The backbone's tensors, their fingerprint checked the first time."""
        wanted = artifact.manifest.backbone.fingerprint
        if (known := self._backbones.get(wanted)) is not None:
            return known
        tensors = map_tensors(self._store.backbone_path(wanted) / BACKBONE_WEIGHTS)
        if (found := fingerprint(tensors)) != wanted:
            raise BackboneMismatchError(
                f"{artifact.task}/{artifact.version}: the backbone's tensors have fingerprint "
                f"{found[:12]}.., the delta was trained on {wanted[:12]}... Restore the file."
            )
        self._backbones[wanted] = tensors
        return tensors


def _require_gpu(settings: EngineSettings) -> None:
    if settings.device != "cuda" or settings.backend == "onnxruntime":
        return  # ONNX Runtime says so itself
    from glora_deploy.tensorrt_runtime.library import find_gpu  # and torch

    if find_gpu() is None:
        raise NotRunnableError("device cuda must have a GPU that PyTorch can use, got none")


def _torch_network(
    manifest: Manifest, frozen: TensorMap, device: Device
) -> Network[Any] | MergingNetwork[Any]:
    # A server on ONNX Runtime needs no torch.
    adapted = adapted_tensors(manifest)
    if device == "cpu":
        from ..engines.torch_network import TorchNetwork

        return TorchNetwork(manifest, frozen, adapted=adapted)
    from ..engines.torch_gpu import TorchGpuNetwork

    return TorchGpuNetwork(manifest, frozen, adapted=adapted)
