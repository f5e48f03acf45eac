"""The ONNX graph of a backbone, found in a store: what exports have traced, and proven.

Serving imports no torch, so it traces nothing. Every export with an ONNX model holds the graph of
its backbone; an export that passed its parity check has proven it, and the sha256 of its file is
recorded. Where no export is left, the store's cache of traced graphs may have it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from glora_deploy.errors import ArtifactError, StoreError
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import MODEL_FILE, ExportRecord, Format
from glora_deploy.store.graph_key import skeleton_key_of
from glora_deploy.store.reader import SKELETONS, StoreReader

from ..errors import LoadError


def find_graph(
    store: StoreReader, artifact: Artifact, precision: Precision, others: Iterable[Artifact]
) -> onnx.ModelProto:
    """The graph that an artifact's network has, with the numbers of no weight in it.

    Args:
        store: Where to look.
        artifact: Of any delta on the backbone.
        precision: ``fp16`` graphs keep some nodes in float32, and which is a matter of the task:
            there only the artifact's own export will do.
        others: More artifacts whose exports may hold it; those of other networks are passed over.

    Raises:
        LoadError: If there is none; names the command that makes one.
    """
    candidates = [artifact]
    if precision == "fp32":
        candidates += [other for other in others if same_network(artifact, other)]
    for candidate in candidates:
        if (found := _exported(store, candidate, precision)) is not None:
            return found
    if precision == "fp32" and (found := _cached(store, candidates)) is not None:
        return found
    backbone = artifact.manifest.backbone
    raise LoadError(
        f"{artifact.task}/{artifact.version}: the store must hold an ONNX graph of "
        f"{backbone.name} at {backbone.input_size}, got none that passed its parity check. "
        f"Run: {export_command(artifact, 'onnx', precision)}"
    )


def export_command(artifact: Artifact, written: Format, precision: Precision) -> str:
    """The command that exports an artifact to a format."""
    words = ["glora", "export", "--task", artifact.task, "--fmt", written, "--store", "STORE"]
    if precision != "fp32":
        words += ["--precision", precision]
    return shlex.join(words)


def same_network(one: Artifact, other: Artifact) -> bool:
    """Whether two artifacts have the same architecture at the same input size."""
    a, b = one.manifest.backbone, other.manifest.backbone
    return (a.name, a.model_args, a.input_size) == (b.name, b.model_args, b.input_size)


def _exported(
    store: StoreReader, artifact: Artifact, precision: Precision
) -> onnx.ModelProto | None:
    """The graph of an artifact's export, if it is whole and was proven."""
    try:
        folder = store.export_dir(artifact, precision)
        record = ExportRecord.read(folder)
        if record is None or not record.usable or "onnx" not in record.formats:
            return None
        record.require_of(folder, artifact.manifest, precision)
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
