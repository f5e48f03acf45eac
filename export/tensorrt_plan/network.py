"""A TensorRT network parsed from an ONNX graph and the safetensors file that holds its weights.

The parser gets the graph as bytes and every weight as an address in the memory-mapped file, so
there is never a full ONNX model in between. Networks are strongly typed wherever the library has
the choice: TensorRT 11 and TensorRT-RTX know nothing else, and in a weakly typed network the
builder would pick fp16 or fp32 for each layer by speed and undo what the ONNX graph keeps in
float32 for its accuracy. The precision is therefore that of the graph.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from glora_deploy.errors import ExportError
from glora_deploy.precision import Precision
from glora_deploy.store.mapped_safetensors import DTYPES, Place, read_layout
from glora_deploy.tensorrt_runtime.library import Builder, Definition, OnnxParser, Tensor, listed
from glora_deploy.tensorrt_runtime.plan_json import TensorRecord

_HALVES: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_STORED = {
    TensorProto.FLOAT: DTYPES["F32"],
    TensorProto.FLOAT16: DTYPES["F16"],
    TensorProto.BFLOAT16: DTYPES["BF16"],
}
_NUMPY_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Network:
    """A parsed network, and what owns the memory it reads its weights from until it is built."""

    definition: Definition
    parser: OnnxParser
    weights: mmap.mmap
    parameters: tuple[str, ...]
    """Initializers of the graph that are tensors of the weights file, sorted."""

    def inputs(self) -> tuple[TensorRecord, ...]:
        """Name, dtype and shape of each input; -1 is the batch."""
        return _describe(self.definition.num_inputs, self.definition.get_input)

    def outputs(self) -> tuple[TensorRecord, ...]:
        """Name, dtype and shape of each output; -1 is the batch."""
        return _describe(self.definition.num_outputs, self.definition.get_output)


def parse_network(
    library: ModuleType,
    logger: Any,
    builder: Builder,
    onnx_path: Path,
    weights_path: Path,
    precision: Precision,
) -> Network:
    """Parse a graph, its external data taken from a safetensors file by name.

    Args:
        library: From ``load_tensorrt``.
        logger: From ``logger_of``; its ``errors`` have been cleared.
        builder: Made with that logger.
        onnx_path: The graph.
        weights_path: The safetensors file.
        precision: What the graph's weights must be.

    Raises:
        ExportError: If the graph is damaged, in another precision, does not fit the weights or
            holds an operation that TensorRT does not know; names it.
        ArtifactError: If the weights cannot be read.
    """
    content = onnx_path.read_bytes()
    graph = _read_graph(content, onnx_path, precision)
    places = read_layout(weights_path)
    external = _external(graph, places, weights_path)
    definition = builder.create_network(_flags(library))
    parser: OnnxParser = library.OnnxParser(definition, logger)
    with weights_path.open("rb") as file:
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(parser, "load_model_proto"):
        parsed = _parse_mapped(parser, content, external, weights)
    else:
        # It opens the external data itself, in the folder of the path it is given.
        parsed = parser.parse(content, str(weights_path))
    if not parsed:
        problems = _problems(parser) or logger.errors
        raise ExportError(
            f"{onnx_path}: must be a graph that {library.__name__} {library.__version__} accepts, "
            f"got {listed(problems)}"
        )
    parameters = {tensor.name for tensor in graph.graph.initializer} & places.keys()
    return Network(definition, parser, weights, tuple(sorted(parameters)))


def _read_graph(content: bytes, path: Path, precision: Precision) -> onnx.ModelProto:
    try:
        graph = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError(f"{path}: must be an ONNX model: {error}. Export it again.") from error
    types = {tensor.data_type for tensor in graph.graph.initializer}
    found = [name for name, dtype in _HALVES.items() if dtype in types] or ["fp32"]
    if found != [precision]:
        raise ExportError(
            f"{path}: weights must be {precision} for a plan in {precision}, got "
            f"{' and '.join(found)}. TensorRT computes in the types of the graph: export the "
            f"ONNX model in {precision}."
        )
    return graph


def _external(graph: onnx.ModelProto, places: Mapping[str, Place], path: Path) -> dict[str, Place]:
    """Where each weight that is not in the graph itself lies in the file, checked."""
    weights = [t for t in graph.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    problems = []
    for weight in weights:
        wanted = f"{_STORED.get(weight.data_type, 'another type')} {tuple(weight.dims)}"
        place = places.get(weight.name)
        found = f"{place.dtype} {place.shape}" if place else "nothing"
        if found != wanted:
            problems.append(f"{weight.name} must be {wanted}, got {found}")
    if problems:
        raise ExportError(
            f"{path}: {listed(problems)}. Export the ONNX model and its weights together."
        )
    return {weight.name: places[weight.name] for weight in weights}


def _flags(library: ModuleType) -> int:
    flags = library.NetworkDefinitionCreationFlag.__members__
    return 1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0


def _parse_mapped(
    parser: Any, content: bytes, external: Mapping[str, Place], weights: mmap.mmap
) -> bool:
    start = np.frombuffer(weights, np.uint8).ctypes.data
    return (
        parser.load_model_proto(content)
        and all(
            parser.load_initializer(name, start + place.offset, place.size_bytes)
            for name, place in external.items()
        )
        and parser.parse_model_proto()
    )


def _problems(parser: OnnxParser) -> list[str]:
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        at = f"{error.node_operator()} ({error.node_name()}): " if error.node_operator() else ""
        problems.append(f"{at}{error.code().name}, {' '.join(error.desc().split())}")
    return problems


def _describe(count: int, get: Callable[[int], Tensor]) -> tuple[TensorRecord, ...]:
    return tuple(
        TensorRecord(
            name=tensor.name,
            dtype=_NUMPY_NAMES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            shape=tuple(tensor.shape[axis] for axis in range(len(tensor.shape))),
        )
        for tensor in map(get, range(count))
    )
