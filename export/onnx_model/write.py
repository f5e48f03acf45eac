"""Weights joined to a skeleton: an ONNX model beside, or around, one ``model.safetensors``."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path

import onnx
from onnx import StringStringEntryProto, TensorProto
from onnx.helper import set_model_props, tensor_dtype_to_np_dtype

from glora_deploy.errors import ExportError
from glora_deploy.store.export_record import MODEL_FILE, WEIGHTS_FILE
from glora_deploy.store.mapped_safetensors import Place, read_layout

from .graph_cache import UNREAD

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER


def describe(
    *,
    task: str,
    version: str,
    labels: Sequence[str],
    precision: str,
    preprocessing: Mapping[str, object],
) -> dict[str, str]:
    """The metadata an exported graph carries; ``labels`` and ``preprocessing`` as JSON."""
    return {
        "task": task,
        "version": version,
        "labels": json.dumps(list(labels), ensure_ascii=False),
        "precision": precision,
        "preprocessing": json.dumps(dict(preprocessing), sort_keys=True),
    }


def attach(
    skeleton: onnx.ModelProto, safetensors_path: Path, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Point every weight of a skeleton at its place in a safetensors file.

    Only the header of the file is read. The result works from the folder of the file.

    Args:
        skeleton: As from :func:`.trace.trace_graph` or :func:`.half_precision.to_precision`.
            Not modified.
        safetensors_path: State dict of the same architecture, in the types of the skeleton.
        metadata: Stored in the model, for instance from :func:`..require_format.describe_artifact`.

    Raises:
        ArtifactError: If the file is no whole safetensors file.
        ExportError: If its names, types or shapes differ from those of the skeleton.
    """
    places = read_layout(safetensors_path)
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    _require_same(model, places, safetensors_path)
    for weight in _weights(model):
        place = places[weight.name]
        del weight.external_data[:]
        for key, value in {
            "location": safetensors_path.name,
            "offset": str(place.offset),
            "length": str(place.size_bytes),
        }.items():
            weight.external_data.add(key=key, value=value)
    model.producer_name = "glora-deploy"
    model.producer_version = version_of("glora-deploy")
    set_model_props(model, dict(metadata))
    return model


def write_onnx(
    folder: Path,
    skeleton: onnx.ModelProto,
    metadata: Mapping[str, str],
    *,
    single_file: bool = False,
    name: str = MODEL_FILE,
) -> Path:
    """Write an ONNX model beside the ``model.safetensors`` of a folder, and check it.

    Args:
        folder: Holds ``model.safetensors``, a real file: ONNX refuses links to external data.
        skeleton: As for :func:`attach`.
        metadata: As for :func:`attach`.
        single_file: Copy the weights into the model instead of pointing at them.
        name: Of its file.

    Returns:
        The path of the model. Its mode follows the umask.

    Raises:
        ExportError: As :func:`attach`; if one file would pass protobuf's 2 GiB; or if ONNX's own
            checker refuses the result.
    """
    weights = folder / WEIGHTS_FILE
    model = attach(skeleton, weights, metadata)
    path = folder / name
    if single_file:
        _write_embedded(path, model, weights)
    else:
        path.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        path.unlink()
        raise ExportError(f"{path}: the graph must pass onnx.checker, got: {reason}") from error
    return path


def is_self_contained(path: Path) -> bool:
    """Whether an ONNX file of ours holds its weights itself; it may, so it is not parsed."""
    place = StringStringEntryProto(key="location", value=WEIGHTS_FILE).SerializeToString()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(place) < 0


def _weights(model: onnx.ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]


def _require_same(model: onnx.ModelProto, places: Mapping[str, Place], path: Path) -> None:
    weights = {weight.name: weight for weight in _weights(model)}
    unread = next(json.loads(p.value) for p in model.metadata_props if p.key == UNREAD)
    problems = [
        f"{name} must not be there" for name in places.keys() - weights.keys() - set(unread)
    ]
    for name, weight in weights.items():
        expected = f"{tensor_dtype_to_np_dtype(weight.data_type)} {tuple(weight.dims)}"
        place = places.get(name)
        found = f"{place.dtype} {place.shape}" if place else "nothing"
        if found != expected:
            problems.append(f"{name} must be {expected}, got {found}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ExportError(
            f"{path}: {'; '.join(sorted(problems)[:3])}{more}. "
            "Give the weights of this architecture in this precision."
        )


def _write_embedded(path: Path, model: onnx.ModelProto, weights: Path) -> None:
    """Write the model with its weights in it, copied one by one from their file.

    protobuf itself wants the whole message in memory, twice, and takes seconds to put it together.
    Its wire format is simple enough to write a graph field by field: a nested message is its tag,
    its length and its bytes.
    """
    embedded = [(_without_place(weight), _place(weight)) for weight in _weights(model)]
    inside = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inside)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = []
    for weight, (_, length) in embedded:
        head = weight.SerializeToString() + _tag(_RAW_DATA) + _varint(length)
        heads.append(_tag(_INITIALIZER) + _varint(len(head) + length) + head)
    n_bytes = len(graph) + sum(map(len, heads)) + sum(length for _, (_, length) in embedded)
    if n_bytes > _PROTOBUF_LIMIT_BYTES:
        raise ExportError(
            f"{path}: one ONNX file must stay below 2 GiB, got {n_bytes / 2**30:.1f} GiB. "
            f"Leave the weights in {WEIGHTS_FILE}."
        )
    with (
        weights.open("rb") as source,
        mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
        path.open("wb") as file,
    ):
        file.write(model.SerializeToString() + _tag(_GRAPH) + _varint(n_bytes) + graph)
        for head, (_, (offset, length)) in zip(heads, embedded, strict=True):
            file.write(head)
            file.write(view[offset : offset + length])


def _without_place(weight: TensorProto) -> TensorProto:
    bare = TensorProto()
    bare.CopyFrom(weight)
    bare.ClearField("external_data")
    bare.ClearField("data_location")
    return bare


def _place(weight: TensorProto) -> tuple[int, int]:
    """Offset and length of an external tensor's bytes."""
    place = {entry.key: entry.value for entry in weight.external_data}
    return int(place["offset"]), int(place["length"])


def _tag(field: int) -> bytes:
    return _varint(field << 3 | 2)  # 2: followed by a length


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    coded = bytearray()
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*coded, number])
