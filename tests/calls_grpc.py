"""Calls over gRPC as messages, by group and name; each group leaves a server as it found it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from calls_http import IMAGES, decoded, encoded_image

METADATA = (("authorization", "Bearer changing-token"),)
_KINDS = {
    bool: "bool_param",
    int: "int64_param",
    str: "string_param",
    float: "double_param",
    bytes: "bytes_param",
}


@dataclass(frozen=True, slots=True)
class GrpcCall:
    method: str
    request: Any
    """A message, or a list of them for a stream."""
    options: Mapping[str, Any] = field(default_factory=dict)


def managed(method: str, task: str, *, repository: str = "", **parameters: Any) -> GrpcCall:
    request = getattr(pb, f"RepositoryModel{method}Request")(
        model_name=task, repository_name=repository
    )
    set_parameters(request, parameters)
    return GrpcCall(f"RepositoryModel{method}", request)


def set_parameters(message: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        setattr(message.parameters[key], _KINDS[type(value)], value)


def asked(
    task: str = "pets",
    version: str = "",
    *,
    values: NDArray[Any] = IMAGES,
    name: str = "image",
    datatype: str = "FP32",
    shape: Sequence[int] | None = None,
    raw: Sequence[bytes] | None = None,
    contents: Mapping[str, Any] | None = None,
    n_inputs: int = 1,
    outputs: Sequence[Mapping[str, Any]] = ({"name": "logits"},),
    id: str = "",
    **parameters: Any,
) -> Any:
    """A message that asks for logits; its values are bytes unless ``contents`` are given."""
    request = pb.ModelInferRequest(model_name=task, model_version=version, id=id)
    set_parameters(request, parameters)
    for _ in range(n_inputs):
        tensor = request.inputs.add(
            name=name, datatype=datatype, shape=values.shape if shape is None else shape
        )
        if contents is not None:
            tensor.contents.MergeFrom(pb.InferTensorContents(**contents))
        elif raw is None:
            request.raw_input_contents.append(values.tobytes())
    request.raw_input_contents.extend(raw or ())
    for output in outputs:
        added = request.outputs.add(name=output["name"])
        set_parameters(added, {key: value for key, value in output.items() if key != "name"})
    return request


def infer(*arguments: Any, **keywords: Any) -> GrpcCall:
    return GrpcCall("ModelInfer", asked(*arguments, **keywords))


def without_value() -> GrpcCall:
    request = asked()
    request.parameters["x"].SetInParent()
    return GrpcCall("ModelInfer", request)


def shared(what: str) -> GrpcCall:
    request = asked()
    set_parameters(getattr(request, what)[0], {"shared_memory_region": "x"})
    return GrpcCall("ModelInfer", request)


def of_models(suffix: str, name: str, version: str) -> dict[str, GrpcCall]:
    return {
        f"{method}{suffix}": GrpcCall(
            f"Model{method.capitalize()}",
            getattr(pb, f"Model{method.capitalize()}Request")(name=name, version=version),
        )
        for method in ("ready", "metadata", "config")
    }


def statistics(name: str = "", version: str = "") -> GrpcCall:
    return GrpcCall("ModelStatistics", pb.ModelStatisticsRequest(name=name, version=version))


def index(**fields: Any) -> GrpcCall:
    return GrpcCall("RepositoryIndex", pb.RepositoryIndexRequest(**fields))


def cases() -> dict[str, dict[str, GrpcCall]]:
    raw = IMAGES.tobytes()
    png = encoded_image()
    not_finite = IMAGES.copy()
    not_finite[0, 0, 0, 0] = np.nan
    many = np.zeros((33, 3, 32, 32), "<f4")
    floats = {"fp32_contents": IMAGES.reshape(-1).tolist()}
    names = {
        "": ("pets", ""),
        " 1": ("pets", "1"),
        " 9": ("pets", "9"),
        " v1": ("pets", "v1"),
        " of another": ("dogs", ""),
        " of no name": ("", ""),
        " of dots": ("..", ""),
    }
    shapes = {
        "flat": [IMAGES.size],
        "without a batch": [3, 32, 32],
        "of fewer pixels": [2, 3, 32, 31],
        "negative": [-1, 3, 32, 32],
        "with five dimensions": [1, 2, 3, 32, 32],
        "empty": [],
        "huge": [1 << 40, 1 << 40, 3, 32],
    }
    return {
        "health": {
            "live": GrpcCall("ServerLive", pb.ServerLiveRequest()),
            "ready": GrpcCall("ServerReady", pb.ServerReadyRequest()),
            "server": GrpcCall("ServerMetadata", pb.ServerMetadataRequest()),
            "shared memory": GrpcCall(
                "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()
            ),
            "trace": GrpcCall("TraceSetting", pb.TraceSettingRequest()),
            "logging": GrpcCall("LogSettings", pb.LogSettingsRequest()),
        },
        "models": {
            name: call
            for suffix, (model, version) in names.items()
            for name, call in of_models(suffix, model, version).items()
        },
        "statistics": {
            "first infer": infer(),
            "first infer 1": infer(version="1"),
            "first infer cars": infer("cars"),
            "all": statistics(),
            **{
                f"of one{suffix}": statistics(*name)
                for suffix, name in names.items()
                if suffix != " of no name"
            },
        },
        "index": {
            "index": index(),
            "ready": index(ready=True),
            "of a repository": index(repository_name="x"),
        },
        "load": {
            "load": managed("Load", "cars"),
            "unknown": managed("Load", "dogs"),
            "unknown parameter": managed("Load", "cars", x=1),
            "file": managed("Load", "cars", **{"file:1/model.onnx": b"x"}),
            "config as number": managed("Load", "cars", config=1),
            "from a repository": managed("Load", "cars", repository="x"),
            "dots": managed("Load", ".."),
            "no name": managed("Load", ""),
            "unload": managed("Unload", "cars"),
            "infer unloaded": infer("cars"),
            "infer unloaded 1": infer("cars", "1"),
            **of_models(" unloaded", "cars", ""),
            "statistics unloaded": statistics("cars"),
            "server ready unloaded": GrpcCall("ServerReady", pb.ServerReadyRequest()),
            "index unloaded": index(),
            "index ready unloaded": index(ready=True),
            "unload again": managed("Unload", "cars", unload_dependents=True),
            "unload unknown": managed("Unload", "dogs"),
            "unload unknown parameter": managed("Unload", "cars", x=1),
            "unload from a repository": managed("Unload", "cars", repository="x"),
            "load back": managed("Load", "cars"),
            "infer again": infer("cars"),
        },
        "infer": {
            "bytes": infer(),
            "listed": infer(contents=floats),
            "no outputs": infer(outputs=()),
            "both": infer(raw=[raw], contents={"fp32_contents": [1.0]}),
            "neither": infer(contents={}),
            "listed elsewhere": infer(contents={"int_contents": [1] * IMAGES.size}),
            "listed short": infer(contents={"fp32_contents": [1.0]}),
            "version 1": infer(version="1"),
            "version 9": infer(version="9"),
            "version v1": infer(version="v1"),
            "another model": infer("dogs"),
            "no model": infer(""),
            "gzip": GrpcCall("ModelInfer", asked(), {"compression": grpc.Compression.Gzip}),
            "deflate": GrpcCall("ModelInfer", asked(), {"compression": grpc.Compression.Deflate}),
            "encoded image": infer(
                name="image_bytes",
                datatype="BYTES",
                shape=[1, 1],
                raw=[len(png).to_bytes(4, "little") + png],
            ),
            "32 images": infer(values=many[:32]),
        },
        "parameters": {
            "id": infer(id="seven"),
            **{
                f"{name} {value!r}": infer(**{name: value})
                for name, value in (
                    ("priority", 1),
                    ("priority", "x"),
                    ("priority", -1),
                    ("timeout", 20_000_000),
                    ("timeout", "x"),
                    ("timeout", 1),
                    ("mine", "x"),
                    ("mine", 1.5),
                    ("mine", True),
                    ("sequence_id", 0),
                    ("sequence_start", True),
                    ("triton_x", 1),
                )
            },
            "without a value": without_value(),
        },
        "outputs": {
            "twice": infer(outputs=[{"name": "logits"}] * 2),
            "unknown": infer(outputs=[{"name": "x"}]),
            "probabilities": infer(outputs=[{"name": "probabilities"}]),
            **{
                f"classes {k!r}": infer(outputs=[{"name": "logits", "classification": k}])
                for k in (1, 2, 0, 99, -1, "x")
            },
            "in shared memory": shared("outputs"),
        },
        "inputs": {
            "another name": infer(name="x"),
            "none": infer(n_inputs=0),
            "two": infer(n_inputs=2),
            "in shared memory": shared("inputs"),
            "bytes too short": infer(raw=[raw[:-4]]),
            "bytes too long": infer(raw=[raw + b"1234"]),
            "bytes of one more": infer(raw=[raw, b""]),
            "bytes of one less": infer(raw=[raw], n_inputs=2),
            **{
                f"datatype {datatype!r}": infer(datatype=datatype)
                for datatype in ("FP64", "INT32", "FP16", "BYTES", "FP31", "")
            },
            **{f"shape {name}": infer(shape=shape) for name, shape in shapes.items()},
            "no image": infer(values=IMAGES[:0]),
            "33 images": infer(values=many),
            "not a number": infer(values=not_finite),
        },
        "stream": {
            "several": GrpcCall(
                "ModelStreamInfer",
                [
                    asked(id="a"),
                    asked("dogs", id="b"),
                    asked("cars", id="c"),
                    asked(id="d", triton_enable_empty_final_response=True),
                    asked(id="e", outputs=[{"name": "x"}]),
                    asked(id="f", outputs=[{"name": "logits", "classification": 2}]),
                ],
            ),
            "empty": GrpcCall("ModelStreamInfer", []),
        },
    }


def answer_of(stub: Any, call: GrpcCall) -> dict[str, Any]:
    """What a server answers, as far as it is compared."""
    request = iter(call.request) if isinstance(call.request, list) else call.request
    try:
        answer = getattr(stub, call.method)(request, metadata=METADATA, **call.options)
        messages = list(answer) if isinstance(call.request, list) else [answer]
    except grpc.RpcError as error:
        return {"code": error.code().name, "says why": bool(error.details())}
    return {"code": "OK", "messages": [_plain(message) for message in messages]}


def _plain(message: Any) -> dict[str, Any]:
    record: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    response = getattr(message, "infer_response", message)
    if isinstance(response, pb.ModelInferResponse):
        inner = record.get("infer_response", record)
        inner.pop("raw_output_contents")
        contents = zip(inner["outputs"], response.raw_output_contents, strict=True)
        for tensor, raw in contents:
            tensor["bytes"] = decoded(tensor["datatype"], raw)
    return record
