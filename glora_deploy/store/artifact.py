"""One version of one task on disk: manifest.json and adapter.safetensors, written and read.

Reading trusts nothing: the bytes must have the size and sha256 that the manifest states, the
manifest the digest that the adapter's header states, and the tensors exactly the names, shapes and
dtype that follow from its layers, all finite, before a single number is handed out. safetensors
only, never pickle (docs/format.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ..errors import ArtifactError, NonFiniteError
from ..glora.shared_factors import shared_supports
from ..record_file import read_bytes
from ..strict_record import short
from .atomic_files import write_durable
from .fingerprint import little_endian
from .manifest import (
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    Dtype,
    FileRecord,
    Manifest,
    ManifestDraft,
    first_problem,
    utc_now,
)

MANIFEST = "manifest.json"
ADAPTER = "adapter.safetensors"
ABOUT = "glora_deploy"
"""Key of what we say in the metadata of a safetensors file."""

_DTYPES: dict[Dtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CODES: dict[Dtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored version of one task; its manifest is read, its tensors are not yet."""

    path: Path
    """The folder that holds manifest.json and adapter.safetensors."""
    manifest: Manifest

    @property
    def task(self) -> str:
        """The task it answers."""
        return self.manifest.task

    @property
    def version(self) -> str:
        """Its version of the task."""
        return self.manifest.version

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Every tensor of the delta by name, read and verified now.

        Supports that are stored as shared factors are formed in float64 and rounded to float32.

        Raises:
            ArtifactError: If adapter.safetensors is not what the manifest says.
            NonFiniteError: If a tensor holds NaN or infinity.
        """
        return with_supports(self.stored_tensors(), self.manifest)

    def stored_tensors(self) -> dict[str, NDArray[Any]]:
        """Every tensor of adapter.safetensors by name, as ``tensors`` but for shared factors."""
        return read_adapter(self.path / ADAPTER, self.manifest)

    def is_bound(self) -> bool:
        """Whether the adapter states the digest of the manifest; older releases wrote none.

        Raises:
            ArtifactError: If adapter.safetensors is not what the manifest says, or the manifest
                not what the adapter says.
        """
        path = self.path / ADAPTER
        return _require_bound(_read_stated(path, self.manifest), self.manifest, path)


def write_artifact(
    folder: Path,
    draft: ManifestDraft,
    tensors: Mapping[str, NDArray[Any]],
    *,
    task: str,
    version: str,
    created: str | None = None,
) -> Artifact:
    """Write a delta and its manifest into an empty folder, flushed to the disk.

    The same arguments give the same bytes.

    Args:
        folder: Exists and holds neither file.
        draft: What the delta is; a ``Manifest`` will do, its other fields are made anew.
        tensors: ``<layer>.A_d``, ... as ``draft.stored_shapes`` names them, and the classifier
            under its own names; all float32, all float16 or all bfloat16. Not modified.
        task: Slug of the task.
        version: Slug of the version.
        created: UTC as in the manifest; now by default.

    Raises:
        ValueError: If the tensors are not those of the draft; names the first, both sides.
        NonFiniteError: If a tensor holds NaN or infinity.
        OSError: If the files cannot be written.
    """
    dtype = _common_dtype(tensors)
    head = {name: tensor.shape for name, tensor in tensors.items() if draft.is_head(name)}
    _require_tensors(
        {name: tensor.shape for name, tensor in tensors.items()},
        {**draft.stored_shapes(), **head},
        ValueError,
        "tensors",
    )
    _require_finite(tensors, "tensors")
    n_head = sum(tensors[name].size for name in head)
    try:
        manifest = Manifest(
            **{field: getattr(draft, field) for field in ManifestDraft.model_fields},
            format_version=FORMAT_VERSION,
            task=task,
            version=version,
            created=created or utc_now(),
            head=dict(sorted(head.items())),
            dtype=dtype,
            n_parameters=sum(tensor.size for tensor in tensors.values()) - n_head,
            n_head_parameters=n_head,
            # The adapter repeats what the manifest says, so the manifest comes first, with a file
            # of the same size in the place of the last.
            adapter=FileRecord.of_bytes(_to_bytes(tensors, task, version, _NO_DIGEST)),
        )
    except ValidationError as error:
        raise ValueError(f"{task}: {first_problem(error)}") from error
    data = _to_bytes(tensors, task, version, manifest.digest())
    manifest = manifest.model_copy(update={"adapter": FileRecord.of_bytes(data)})
    write_durable(folder / ADAPTER, data)
    write_durable(folder / MANIFEST, manifest.to_json())
    return Artifact(folder, manifest)


def read_artifact(folder: Path) -> Artifact:
    """Read the manifest of a folder that ``write_artifact`` wrote; tensors are read on demand.

    Raises:
        ArtifactError: If manifest.json is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    return Artifact(
        folder, Manifest.from_json(read_bytes(path, MAX_MANIFEST_BYTES), where=str(path))
    )


def read_adapter(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Every tensor of an adapter.safetensors by name, once it is what the manifest says.

    Args:
        path: The file.
        manifest: States its size, sha256, names, shapes and dtype; the file states its digest.

    Raises:
        ArtifactError: If one of these differs; names file and tensor and both sides.
        NonFiniteError: If a tensor holds NaN or infinity.
    """
    data = _read_stated(path, manifest)
    try:
        entries: dict[str, dict[str, Any]] = dict(
            deserialize(data)  # type: ignore[no-untyped-call]  # safetensors does not type it
        )
    except SafetensorError as error:
        raise ArtifactError(f"{path}: must be a safetensors file: {error}") from error
    _require_bound(data, manifest, path)
    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    _require_tensors(shapes, manifest.tensor_shapes(), ArtifactError, str(path))
    code, dtype = _CODES[manifest.dtype], _DTYPES[manifest.dtype]
    for name, entry in sorted(entries.items()):
        if entry["dtype"] != code:
            raise ArtifactError(
                f"{path}: {name} is {entry['dtype']} in the file, {code} in {MANIFEST}"
            )
    tensors = {
        name: np.frombuffer(entries[name]["data"], dtype).reshape(shape)
        for name, shape in manifest.tensor_shapes().items()
    }
    _require_finite(tensors, str(path))
    return tensors


def with_supports(
    stored: Mapping[str, NDArray[Any]], manifest: ManifestDraft
) -> dict[str, NDArray[Any]]:
    """The tensors of a delta with the supports of each layer in the place of shared factors.

    Args:
        stored: As ``stored_shapes`` names them, and the classifier.
        manifest: What the delta is.

    Raises:
        NonFiniteError: If a product leaves float32.
    """
    if manifest.shared is None:
        return dict(stored)
    shared = manifest.stored_shapes()
    wide = {name: stored[name].astype(np.float64) for name in shared}
    found = {name: tensor for name, tensor in stored.items() if name not in shared}
    for layer, shape in manifest.shapes().items():
        supports = shared_supports(manifest.shared.kind, wide, layer, shape)
        with np.errstate(over="ignore"):  # refused below, by name
            found |= {f"{layer}.{k}": v.astype(np.float32) for k, v in supports.items()}
    _require_finite(found, f"{manifest.shared.kind} factors")
    return found


def _to_bytes(tensors: Mapping[str, NDArray[Any]], task: str, version: str, digest: str) -> bytes:
    # The library writes metadata in the order of a randomly seeded hash map: one key keeps the
    # bytes the same from run to run.
    about = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "version": version,
        "manifest_digest": digest,
    }
    # It also takes the memory of an array as row-major, whatever its strides say.
    flat = {name: little_endian(tensor) for name, tensor in tensors.items()}
    return save(flat, {ABOUT: json.dumps(about)})


def _read_stated(path: Path, manifest: Manifest) -> bytes:
    """The bytes of an adapter, once they are the ones its manifest states."""
    data = read_bytes(path, manifest.adapter.size_bytes)
    manifest.adapter.require_equal(FileRecord.of_bytes(data), str(path), MANIFEST)
    return data


def _require_bound(data: bytes, manifest: Manifest, path: Path) -> bool:
    """Check the manifest against the digest in an adapter's header; False if there is none."""
    stated = _stated_digest(data, path)
    if stated is None:
        return False
    if stated != (found := manifest.digest()):
        raise ArtifactError(
            f"{path.with_name(MANIFEST)}: what it says has digest {found[:12]}.., "
            f"{stated[:12]}.. in {ADAPTER}. It was altered; restore the file."
        )
    return True


def _stated_digest(data: bytes, path: Path) -> str | None:
    """The digest of the manifest that an adapter's header states; None if it states none."""
    length = int.from_bytes(data[:8], "little")
    try:
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(ABOUT)
        digest = None if text is None else json.loads(text).get("manifest_digest")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: {ABOUT} in its metadata must be a JSON object: {error}"
        ) from error
    if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise ArtifactError(
            f"{path}: manifest_digest in its metadata must be 64 hex digits, got {short(digest)}"
        )
    return digest


def _common_dtype(tensors: Mapping[str, NDArray[Any]]) -> Dtype:
    names = {tensor.dtype.name for tensor in tensors.values()}
    if len(names) == 1:
        for dtype in _DTYPES:
            if names == {dtype}:
                return dtype
    raise ValueError(
        f"tensors must all be one of {', '.join(_DTYPES)}, got {', '.join(sorted(names)) or 'none'}"
    )


def _require_tensors(
    found: Mapping[str, tuple[int, ...]],
    stated: Mapping[str, tuple[int, ...]],
    error: type[Exception],
    where: str,
) -> None:
    problems = [f"{name} must be present" for name in sorted(stated.keys() - found.keys())]
    problems += [f"{name} must not be present" for name in sorted(found.keys() - stated.keys())]
    problems += [
        f"{name} must have shape {stated[name]} by the manifest, got {found[name]}"
        for name in sorted(found.keys() & stated.keys())
        if tuple(found[name]) != tuple(stated[name])
    ]
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise error(f"{where}: {problems[0]}{more}")


def _require_finite(tensors: Mapping[str, NDArray[Any]], where: str) -> None:
    for name, tensor in sorted(tensors.items()):
        if not np.isfinite(tensor).all():
            n_bad = int(tensor.size - np.count_nonzero(np.isfinite(tensor)))
            raise NonFiniteError(
                f"{where}: {name} must be finite, got {n_bad} NaN or infinite of {tensor.size}"
            )
