"""ONNX Runtime: the one module of this side that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import ExportError, MissingDependencyError
from glora_deploy.onnx_runtime import import_onnxruntime

INPUT, OUTPUT = "image", "logits"

Device = Literal["cpu", "cuda"]

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
        onnxruntime = import_onnxruntime("running an ONNX model")
        options = _options(onnxruntime, threads)
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


class WeightedSession:
    """A graph in memory that takes weights as inputs beside the images.

    Args:
        model: Serialised.
        folder: Where its external data lie; they are mapped, not read.
        threads: Threads within an operator; ONNX Runtime's own choice if None.
        device: ``cuda`` keeps weights and results on the device.
        constants: Initializers of the graph, marked as external, that are given as arrays: ONNX
            Runtime refers to their memory for as long as this object lives.

    Raises:
        MissingDependencyError: If ONNX Runtime is missing, or has no CUDA for ``device="cuda"``.
        ExportError: If ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        model: bytes,
        folder: Path,
        threads: int | None,
        device: Device = "cpu",
        constants: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        onnxruntime = import_onnxruntime("running an ONNX model")
        self._of_array = onnxruntime.OrtValue.ortvalue_from_numpy
        self._device = device
        options = _options(onnxruntime, threads)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        self._constants = {name: self.value(array) for name, array in (constants or {}).items()}
        if self._constants:
            # Not add_initializer: what it gives is put in after the graph was optimised, and
            # optimisers that read numbers, as those of convolutions do, would read others.
            options.add_external_initializers(list(self._constants), list(self._constants.values()))
        provider, settings = _PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise MissingDependencyError("onnxruntime-gpu", "gpu", "running an ONNX model on CUDA")
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=[(provider, settings)]
            )
        except Exception as error:  # its exception classes share no other base
            reason = str(error).splitlines()[0]
            raise ExportError(f"ONNX Runtime must load the graph, got: {reason}") from error

    def value(self, array: NDArray[Any]) -> Any:
        """An array as ``logits`` takes weights; on the CPU its memory is referred to, not copied.

        Args:
            array: C-contiguous.
        """
        return self._of_array(array, self._device)

    def logits(self, images: NDArray[np.float32], weights: Mapping[str, Any]) -> NDArray[Any]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``.

        Args:
            images: C-contiguous.
            weights: Every other input of the graph, as ``value`` makes them.
        """
        feed = {INPUT: self.value(images), **weights}
        if self._device == "cpu":
            (logits,) = self._session.run_with_ort_values([OUTPUT], feed)
        else:
            binding = self._session.io_binding()
            for name, value in feed.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_output(OUTPUT, self._device)
            self._session.run_with_iobinding(binding)
            (logits,) = binding.get_outputs()
        return np.asarray(logits.numpy())


_PROVIDERS: Mapping[Device, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # On by default: the inputs of float32 products would be rounded to 10 bits.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def _options(onnxruntime: Any, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY  # it warns of every initializer it drops
    if threads is not None:
        options.intra_op_num_threads = threads
    return options
