"""ONNX Runtime: the one module that imports it.

It is asked for the same arithmetic everywhere: TF32, which CUDA takes for float32 products unless
told otherwise, is off. Whether 8-bit products are exact depends on the CPU, and can be tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from glora_deploy.errors import ExportError, MissingDependencyError
from glora_deploy.onnx_runtime import import_onnxruntime

Device = Literal["cpu", "cuda"]

PROVIDERS: Mapping[Device, tuple[str, Mapping[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # On by default: the inputs of float32 products would be rounded to 10 bits.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}
"""ONNX Runtime's name of the provider for a device, and its settings."""

PREPROCESSED = "onnx.quant.pre_process"
"""Metadata key of a model that the quantiser need not warn to fold first."""

_ERRORS_ONLY = 3


class OnnxSession:
    """An ONNX model ready to run.

    Args:
        model: Path of a model, or a model in memory whose external data lie in ``folder``.
        threads: Threads within an operator; ONNX Runtime's own choice if None.
        device: ``cuda`` needs the ``gpu`` extra and a device.
        folder: Where the external data of a model in memory lie; unused with a path.
        lean: Give the memory of a run back at its end, for few runs rather than fast ones.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing, or has no CUDA for ``device="cuda"``.
        ExportError: If ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        threads: int | None = None,
        *,
        device: Device = "cpu",
        folder: Path | None = None,
        lean: bool = False,
    ) -> None:
        runtime = _import_onnxruntime(device)
        options = runtime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY  # it warns of every initializer it drops
        options.enable_cpu_mem_arena = options.enable_mem_pattern = not lean
        if threads is not None:
            options.intra_op_num_threads = threads
        if isinstance(model, Path):
            source: str | bytes = str(model)
        else:
            source = model.SerializeToString()
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        provider, settings = PROVIDERS[device]
        try:
            self._session = runtime.InferenceSession(
                source, options, providers=[(provider, dict(settings))]
            )
        except Exception as error:  # its exception classes share no other base
            where = model if isinstance(model, Path) else folder
            reason = str(error).splitlines()[0]
            raise ExportError(f"{where}: ONNX Runtime must load it, got: {reason}") from error
        # Without a usable GPU it takes the CPU and says nothing.
        if provider not in self._session.get_providers():
            raise ExportError("ONNX Runtime: device must be usable, got no CUDA. Use cpu.")
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` float32 of images ``(n, c, h, w)`` float32."""
        (logits,) = self._session.run(["logits"], {"image": images})
        return np.asarray(logits, dtype=np.float32)

    def run(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """One output of the graph, for inputs by name."""
        (found,) = self._session.run([output], dict(inputs))
        return np.asarray(found)

    def all_outputs(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Every output of the graph by name, for images ``(n, c, h, w)`` float32."""
        return dict(zip(self.outputs, self._session.run(None, {"image": images}), strict=True))


def write_int8(
    model: onnx.ModelProto,
    path: Path,
    nodes: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    *,
    seven_bit: bool,
) -> None:
    """Write a copy of a model whose named nodes compute in 8 bits, by ONNX Runtime's quantiser.

    Weights are signed, symmetric and scaled per output channel; activations unsigned, each range
    the mean over the batches of their extremes. A value is quantised where a named ``MatMul`` or
    ``Gemm`` reads it and stays float where one writes it, as the next reader is seldom one too.

    Args:
        model: Float, self-contained, its constants folded, every node named. Gets the metadata
            entry ``PREPROCESSED``, otherwise not modified.
        path: New file, self-contained.
        nodes: Names of ``Conv``, ``Gemm`` and ``MatMul`` nodes with constant weights.
        batches: Images ``(n, c, h, w)`` to take the ranges from; read once.
        seven_bit: Use 7 bits of each weight, whose products no CPU saturates.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing.
    """
    _import_onnxruntime("cpu")
    from onnxruntime import quantization

    model.metadata_props.add(key=PREPROCESSED, value="onnxruntime.quant")
    quantization.quantize_static(
        model,
        str(path),
        _Feed(iter(batches)),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        nodes_to_quantize=list(nodes),
        per_channel=True,
        reduce_range=seven_bit,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={
            "CalibMovingAverage": True,
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        },
    )


def has_cuda() -> bool:
    """Whether the ONNX Runtime that is installed was built for CUDA; it may find no GPU yet."""
    try:
        _import_onnxruntime("cuda")
    except MissingDependencyError:
        return False
    return True


def integer_products(
    activations: NDArray[np.uint8], weights: NDArray[np.int8]
) -> NDArray[np.int32]:
    """The product of 8-bit matrices as ONNX Runtime computes it on this CPU, right or saturated.

    Args:
        activations: ``(n, d_in)``.
        weights: ``(d_in, d_out)``, a constant of the graph, which a kernel lays out beforehand.

    Returns:
        ``(n, d_out)``.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing.
    """
    runtime = _import_onnxruntime("cpu")
    node = helper.make_node("MatMulInteger", ["a", "w"], ["product"])
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, ["n", weights.shape[0]])
    y = helper.make_tensor_value_info("product", TensorProto.INT32, ["n", weights.shape[1]])
    graph = helper.make_graph([node], "product", [a], [y], [numpy_helper.from_array(weights, "w")])
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.int32] = session.run(["product"], {"a": activations})[0]
    return found


def multiplies_exactly() -> bool:
    """Whether ONNX Runtime's product of 8-bit numbers is right on this CPU at their largest.

    Tried, not looked up: what counts is the kernel that it chose.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing.
    """
    d_in, d_out = 64, 32
    weights = np.full((d_in, d_out), 127, np.int8)
    rows = (np.full((n, d_in), 255, np.uint8) for n in (1, 8))  # one row has a kernel of its own
    return all((integer_products(row, weights) == 255 * 127 * d_in).all() for row in rows)


class _Feed:
    """Batches in the form in which ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The inputs of the next run; None after the last."""
        images = next(self._batches, None)
        return None if images is None else {"image": images}


def _import_onnxruntime(device: Device) -> Any:
    onnxruntime = import_onnxruntime("running an ONNX model")
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", "gpu", "running an ONNX model on CUDA")
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)  # of what has no session of its own
    return onnxruntime
