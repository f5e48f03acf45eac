"""Messages of an inference <-> a call and its reply, which know no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from ..errors import InputError
from ..protocol.datatypes import BYTES, quoted, require_datatype
from ..protocol.infer import InferReply
from ..protocol.tensors import (
    InferCall,
    Parameter,
    RequestedOutput,
    Tensor,
    from_bytes,
    from_values,
    to_bytes,
)

_CONTENTS: Mapping[str, tuple[str, type[np.generic]]] = {
    "BOOL": ("bool_contents", np.bool_),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.int32)),
    "INT64": ("int64_contents", np.int64),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.uint32)),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}
"""Where the values of a datatype lie, and of what type; FP16 and BF16 have no such field."""

_SHARED = "shared_memory_region"
STREAM_PARAMETER = "triton_enable_empty_final_response"
"""Every client that streams sends it; an answer here is one message, so it changes nothing."""


def read_call(request: pb.ModelInferRequest) -> InferCall:
    """The call that a message is.

    Raises:
        InputError: If tensors come in two ways at once, or not as their datatype and shape say.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            f"raw_input_contents must be one for each of {len(request.inputs)} inputs, "
            f"got {len(raw)}"
        )
    return InferCall(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        parameters={
            key: value
            for key, value in read_parameters(request.parameters).items()
            if key != STREAM_PARAMETER
        },
        inputs=tuple(
            _input(tensor, raw[index] if raw else None)
            for index, tensor in enumerate(request.inputs)
        ),
        outputs=tuple(map(_output, request.outputs)),
    )


def write_reply(reply: InferReply) -> pb.ModelInferResponse:
    """The message that a reply is; its tensors are bytes, as Triton's are."""
    response = pb.ModelInferResponse(
        model_name=reply.model, model_version=reply.version, id=reply.id
    )
    for key, value in reply.parameters.items():
        _set(response.parameters[key], value)
    for tensor in reply.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(to_bytes(tensor))
    return response


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """Parameters of a call, an input, an output or a load.

    Raises:
        InputError: If one has no value.
    """
    found: dict[str, Parameter] = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InputError(f"parameter {quoted(key)} must have a value")
        found[key] = getattr(parameter, kind)
    return found


def has_many_values(request: pb.ModelInferRequest, most: int) -> bool:
    """Whether reading a call takes milliseconds: its values are listed one by one."""
    return not request.raw_input_contents and request.ByteSize() > most


def _input(tensor: Any, raw: bytes | None) -> Tensor:
    name, datatype = tensor.name, tensor.datatype
    parameters = read_parameters(tensor.parameters)
    if _SHARED in parameters:
        raise InputError(f"input {quoted(name)}: must come in the message, not in shared memory")
    require_datatype(name, datatype)
    if raw is not None:
        if tensor.contents.ByteSize():
            raise InputError(
                f"input {quoted(name)}: must have contents or raw_input_contents, got both"
            )
        return from_bytes(name, datatype, tensor.shape, raw, parameters)
    if datatype not in _CONTENTS:
        raise InputError(f"input {quoted(name)}: {datatype} must be sent in raw_input_contents")
    field, kind = _CONTENTS[datatype]
    listed = list(getattr(tensor.contents, field))
    values = listed if datatype == BYTES else np.array(listed, kind)
    return from_values(name, datatype, tensor.shape, values, parameters)


def _output(output: Any) -> RequestedOutput:
    parameters = read_parameters(output.parameters)
    if _SHARED in parameters:
        raise InputError(
            f"output {quoted(output.name)}: must come in the message, not in shared memory"
        )
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise InputError(
            f"output {quoted(output.name)}: classification must be an integer of 0 or more, "
            f"got {quoted(repr(classes))}"
        )
    return RequestedOutput(name=output.name, classification=classes)


def _set(parameter: pb.InferParameter, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value
