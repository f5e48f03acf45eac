"""ONNX Runtime: the one module that imports it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from glora_deploy.errors import ExportError, MissingDependencyError

Device = Literal["cpu", "cuda"]

PREPROCESSED = "onnx.quant.pre_process"
"""Metadata key of a model that the quantiser need not warn to fold first."""


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
        options.log_severity_level = 3  # errors only: it warns of every initializer it drops
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
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        try:
            self._session = runtime.InferenceSession(source, options, providers=[provider])
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
        seven_bit: Use 7 bits of each weight, for CPUs whose 8-bit products saturate.

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


class _Feed:
    """Batches in the form in which ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The inputs of the next run; None after the last."""
        images = next(self._batches, None)
        return None if images is None else {"image": images}


def _import_onnxruntime(device: Device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "cpu", "running an ONNX model") from error
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", "gpu", "running an ONNX model on CUDA")
    return onnxruntime
