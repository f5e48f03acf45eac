"""A call of one model becomes images for the engine; what the engine answers becomes outputs.

Three steps, so that a transport can run the slow one, :func:`to_images`, where it blocks nobody::

    plan = plan_call(engine, call, limits, now_s)
    images = to_images(plan, limits)
    future = engine.submit(plan.request(images))
    reply = to_reply(engine, plan, future.result())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnavailableError
from ..tasks.contract import Answer, InferRequest, ServedVersion, TaskEngine
from .classification import class_strings, softmax
from .datatypes import BYTES, quoted
from .images import decode_images
from .limits import Limits
from .tensors import InferCall, Parameter, RequestedOutput, Tensor
from .version_names import client_name, find_version

IMAGE = "image"
"""Input: preprocessed images, FP32 ``(n, 3, h, w)``."""
IMAGE_BYTES = "image_bytes"
"""Input: encoded images, BYTES ``(n,)`` or ``(n, 1)``; the server preprocesses them."""
LOGITS = "logits"
PROBABILITIES = "probabilities"
OUTPUTS = (LOGITS, PROBABILITIES)
"""FP32 ``(n, n_classes)`` each."""

MAX_PRIORITY = 1 << 32
_MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """A call that was checked, and the version that is to answer it."""

    call: InferCall
    served: ServedVersion
    tensor: Tensor
    """The one input: images, or encoded images."""
    n_images: int
    deadline_s: float
    """By ``time.monotonic()``."""
    priority: int

    @property
    def needs_decoding(self) -> bool:
        """Whether :func:`to_images` takes more than microseconds."""
        return self.tensor.is_bytes

    def request(self, images: NDArray[np.float32]) -> InferRequest:
        """What the engine is asked; the version stays the one that was chosen here."""
        return InferRequest(
            task=self.served.task,
            version=self.served.version,
            images=images,
            deadline_s=self.deadline_s,
            priority=self.priority,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InferReply:
    """What goes back to the client."""

    model: str
    version: str
    """As the client knows it."""
    id: str
    parameters: Mapping[str, Parameter]
    outputs: tuple[Tensor, ...]
    answer: Answer


def plan_call(engine: TaskEngine, call: InferCall, limits: Limits, now_s: float) -> CallPlan:
    """Check everything of a call but its pixels.

    Args:
        engine: Knows the tasks.
        call: As it came in.
        limits: Of the server.
        now_s: When it came in, by ``time.monotonic()``.

    Raises:
        UnknownTaskError: If no such task or version is served.
        UnavailableError: If the version is not ready.
        InputError: If a name, type, shape, parameter or output is not one of this model's, or
            there are more images than one batch holds.
    """
    served = find_version(engine, call.model, call.version)
    if served.state != "READY":
        reason = f": {served.reason}" if served.reason else ""
        raise UnavailableError(f"model {served.task} version {served.version} is not ready{reason}")
    if len(call.id) > limits.max_id_chars:
        raise InputError(f"id must have at most {limits.max_id_chars} characters")
    timeout_s = _timeout_s(call.parameters)
    _require_outputs(served, call.outputs)
    tensor = _the_input(served, call)
    n_images = tensor.shape[0]
    if n_images > engine.max_batch:
        raise InputError(
            f"model {served.task}: a request must have at most {engine.max_batch} images, "
            f"got {n_images}"
        )
    return CallPlan(
        call=call,
        served=served,
        tensor=tensor,
        n_images=n_images,
        deadline_s=now_s + min(timeout_s or limits.max_wait_s, limits.max_wait_s),
        priority=_whole(call.parameters, "priority", MAX_PRIORITY),
    )


def to_images(plan: CallPlan, limits: Limits) -> NDArray[np.float32]:
    """The images of a call ``(n, 3, h, w)``, C-contiguous; encoded ones are decoded.

    Raises:
        InputError: If a value is not finite, or an image cannot be decoded.
        TooLargeError: If an image is over a limit.
    """
    if plan.tensor.is_bytes:
        encoded: list[bytes] = plan.tensor.values.reshape(-1).tolist()
        return decode_images(encoded, plan.served.preprocessing, limits)
    # A body behind JSON of any length is rarely aligned.
    images: NDArray[np.float32] = np.require(plan.tensor.values, np.float32, ("C", "A"))
    if not np.isfinite(images).all():
        raise InputError(f"input {IMAGE!r}: values must be finite, got NaN or infinity")
    return images


def to_reply(engine: TaskEngine, plan: CallPlan, answer: Answer) -> InferReply:
    """The outputs that were asked for, and who computed them."""
    labels = plan.served.labels
    requested = plan.call.outputs or tuple(RequestedOutput(name=name) for name in OUTPUTS)
    return InferReply(
        model=answer.task,
        version=client_name(engine, answer.task, answer.version),
        id=plan.call.id,
        parameters=provenance(answer),
        outputs=tuple(_output(one, answer, labels) for one in requested),
        answer=answer,
    )


def provenance(answer: Answer) -> dict[str, Parameter]:
    """Who computed an answer and how long each part took: ``parameters`` of every reply."""
    return {
        "task": answer.task,
        "version": answer.version,
        "delta_sha256": answer.delta_sha256,
        "queue_ns": answer.queue_ns,
        "swap_ns": answer.swap_ns,
        "compute_ns": answer.compute_ns,
        "batch_size": answer.batch_size,
    }


def _output(wanted: RequestedOutput, answer: Answer, labels: tuple[str, ...]) -> Tensor:
    values = answer.logits if wanted.name == LOGITS else softmax(answer.logits)
    if wanted.classification:
        strings = class_strings(values, labels, wanted.classification)
        return Tensor(name=wanted.name, datatype=BYTES, shape=strings.shape, values=strings)
    return Tensor(name=wanted.name, datatype="FP32", shape=values.shape, values=values)


def _the_input(served: ServedVersion, call: InferCall) -> Tensor:
    """The one input of a call, of a shape and type that the version takes."""
    where = f"model {served.task}"
    for tensor in call.inputs:
        if tensor.name not in (IMAGE, IMAGE_BYTES):
            raise InputError(
                f"{where}: inputs must be {IMAGE} or {IMAGE_BYTES}, got {quoted(tensor.name)}"
            )
    if len(call.inputs) != 1:
        raise InputError(
            f"{where}: must get one input, {IMAGE} or {IMAGE_BYTES}, got {len(call.inputs)}"
        )
    (tensor,) = call.inputs
    # Encoded images may come as either name: BYTES cannot be anything else.
    expected = BYTES if tensor.name == IMAGE_BYTES or tensor.is_bytes else "FP32"
    if tensor.datatype != expected:
        raise InputError(f"{where}: input {tensor.name} must be {expected}, got {tensor.datatype}")
    if tensor.is_bytes:
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise InputError(
                f"{where}: input {tensor.name} must have shape [n] or [n, 1] as BYTES, "
                f"got {list(tensor.shape)}"
            )
    elif len(tensor.shape) != 4 or tensor.shape[1:] != served.input_shape:
        raise InputError(
            f"{where}: input {IMAGE} must have shape {[-1, *served.input_shape]}, "
            f"got {list(tensor.shape)}"
        )
    if tensor.shape[0] == 0:
        raise InputError(f"{where}: input {tensor.name} must have at least one image, got none")
    return tensor


def _require_outputs(served: ServedVersion, outputs: tuple[RequestedOutput, ...]) -> None:
    names = [output.name for output in outputs]
    for name in names:
        if name not in OUTPUTS:
            raise InputError(
                f"model {served.task}: outputs must be {' or '.join(OUTPUTS)}, got {quoted(name)}"
            )
    if len(set(names)) != len(names):
        raise InputError(f"model {served.task}: an output must be asked for once, got {names}")


def _timeout_s(parameters: Mapping[str, Parameter]) -> float:
    """The parameter ``timeout``, in seconds; 0 for none."""
    return _whole(parameters, "timeout", 1 << 63) * _MICROSECOND


def _whole(parameters: Mapping[str, Parameter], name: str, below: int) -> int:
    for key in parameters:
        if key.startswith("triton_"):
            raise InputError(f"parameters must not start with 'triton_', got {quoted(key)}")
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise InputError(
            f"parameter {name} must be an integer of 0 or more, got {quoted(repr(value))}"
        )
    return value
