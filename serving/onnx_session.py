"""ONNX Runtime: the one module of this side that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import ExportError, MissingDependencyError

INPUT, OUTPUT = "image", "logits"

_ERRORS_ONLY = 3


class OnnxSession:
    """An exported ONNX model on the CPU, ready to run from any number of threads at once.

    Args:
        path: Of the model; its external data lie beside it.
        threads: Threads within an operator; ONNX Runtime's own choice if None.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing.
        ExportError: If ONNX Runtime refuses the model.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime", "cpu", "running an ONNX model") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY  # it warns of every initializer it drops
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception classes share no other base
            reason = str(error).splitlines()[0]
            raise ExportError(f"{path}: ONNX Runtime must load it, got: {reason}") from error

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model says of itself."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """Of the input ``image``; empty if the model has not that one input."""
        inputs = self._session.get_inputs()
        return tuple(inputs[0].shape) if [one.name for one in inputs] == [INPUT] else ()

    @property
    def output_shape(self) -> tuple[int | str | None, ...]:
        """Of the output ``logits``; empty if the model has not that one output."""
        outputs = self._session.get_outputs()
        return tuple(outputs[0].shape) if [one.name for one in outputs] == [OUTPUT] else ()

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``."""
        (logits,) = self._session.run([OUTPUT], {INPUT: images})
        return np.asarray(logits, np.float32)
