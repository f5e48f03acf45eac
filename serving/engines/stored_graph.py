"""The ONNX graph of a backbone, found in a store: what exports have traced, and proven.

Serving imports no torch, so it traces nothing. Every export with an ONNX model holds the graph of
its backbone; an export that passed its parity check has proven it, and the sha256 of its file is
recorded. Where no export is left, the store's cache of traced graphs may have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import MODEL_FILE, ExportRecord
from glora_deploy.store.graph_key import skeleton_key_of
from glora_deploy.store.reader import SKELETONS, StoreReader

from ..errors import LoadError
from ..export_command import export_command


def find_graph(
    store: StoreReader, artifact: Artifact, precision: Precision, others: Iterable[Artifact]
) -> onnx.ModelProto:
    """The graph that an artifact's network has, with the numbers of no weight in it.

    Args:
        store: Where to look.
        artifact: Of any delta on the backbone.
        precision: Of the graph's weights.
        others: More artifacts whose exports may hold it; those of other networks are passed over.

    Raises:
        LoadError: If there is none; names the command that makes one.
    """
    holders = candidates(artifact, precision, others)
    for candidate in holders:
        if (found := _exported(store, candidate, precision)) is not None:
            return found
    if precision == "fp32" and (found := _cached(store, holders)) is not None:
        return found
    backbone = artifact.manifest.backbone
    raise LoadError(
        f"{artifact.task}/{artifact.version}: the store must hold an ONNX graph of "
        f"{backbone.name} at {backbone.input_size}, got none that passed its parity check. "
        f"Run: {export_command(artifact.task, 'onnx', precision, '--store', 'STORE')}"
    )


def candidates(
    artifact: Artifact, precision: Precision, others: Iterable[Artifact]
) -> list[Artifact]:
    """Artifacts whose exports hold what this one's network is run from.

    Below fp32 its own alone: which nodes stay in float32 is a matter of the task.
    """
    if precision != "fp32":
        return [artifact]
    return [artifact, *(other for other in others if _same_network(artifact, other))]


def _same_network(one: Artifact, other: Artifact) -> bool:
    a, b = one.manifest.backbone, other.manifest.backbone
    return (a.name, a.model_args, a.input_size) == (b.name, b.model_args, b.input_size)


def _exported(
    store: StoreReader, artifact: Artifact, precision: Precision
) -> onnx.ModelProto | None:
    """The graph of an artifact's export, if it is whole and was proven."""
    try:
        folder = store.export_dir(artifact, precision)
        record = ExportRecord.usable_of(folder, artifact.manifest, precision, "onnx")
        if record is None:
            return None
        record.require_intact(folder, MODEL_FILE)
        return onnx.load_model(folder / MODEL_FILE, load_external_data=False)
    except (ArtifactError, StoreError, DecodeError, OSError):
        return None


def _cached(store: StoreReader, candidates: Iterable[Artifact]) -> onnx.ModelProto | None:
    """A graph that an export has traced and kept, for the number of classes of any candidate."""
    try:
        keys = dict.fromkeys(skeleton_key_of(one.manifest) for one in candidates)
    except PackageNotFoundError:  # the key names the libraries that traced, and one is missing
        return None
    for key in keys:
        try:
            path = store.inside(store.root / SKELETONS / f"{key}.onnx")
            found = onnx.load_model(path, load_external_data=False)
        except (StoreError, DecodeError, OSError):
            continue
        if found.graph.output:  # an empty file is a model too, of nothing
            return found
    return None
