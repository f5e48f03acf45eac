"""TensorRT or TensorRT-RTX: the one module that imports either of them.

Both offer the same Python names. What differs between them and their releases is found by asking
for the attribute, never by comparing versions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from ..errors import ExportError, MissingDependencyError
from .plan_json import Backend, Library

if TYPE_CHECKING:
    import tensorrt as trt

# Types of whichever library was loaded; tests/typecheck_tensorrt.sh checks their uses.
Builder: TypeAlias = "trt.Builder"
BuilderConfig: TypeAlias = "trt.IBuilderConfig"
BuilderFlags: TypeAlias = "type[trt.BuilderFlag]"
Context: TypeAlias = "trt.IExecutionContext"
CudaEngine: TypeAlias = "trt.ICudaEngine"
Definition: TypeAlias = "trt.INetworkDefinition"
OnnxParser: TypeAlias = "trt.OnnxParser"
ParserRefitter: TypeAlias = "trt.OnnxParserRefitter"
Refitter: TypeAlias = "trt.Refitter"
Runtime: TypeAlias = "trt.Runtime"
Tensor: TypeAlias = "trt.ITensor"

log = logging.getLogger(__name__)

_PURPOSE = "a TensorRT plan"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The CUDA device that torch would use."""

    name: str
    capability: str
    """Compute capability, such as ``8.6``."""


def find_gpu() -> Gpu | None:
    """The GPU of this machine, None if there is none that torch can use."""
    import torch  # seconds, and hundreds of megabytes, that a build without a GPU does without

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}")


def load_tensorrt(backend: Backend = "auto") -> tuple[ModuleType, Library]:
    """Import the TensorRT to work with.

    ``auto`` takes the data-centre library where it is installed and there is a GPU, which it cannot
    even build without; else TensorRT-RTX, which builds anywhere.

    Returns:
        The module and its name.

    Raises:
        MissingDependencyError: If the library asked for, or any, is not installed.
        ExportError: If it is installed and cannot be loaded, or needs a GPU and there is none.
    """
    if backend == "rtx":
        return _load("tensorrt_rtx", "tensorrt_rtx", "rtx"), "tensorrt_rtx"
    if backend == "tensorrt":
        library = _load("tensorrt", "tensorrt", "gpu")
        if find_gpu() is None:
            raise ExportError(
                "backend tensorrt must have a GPU, got none. Use rtx, which builds without one."
            )
        return library, "tensorrt"
    if find_spec("tensorrt") is not None and find_gpu() is not None:
        return _load("tensorrt", "tensorrt", "gpu"), "tensorrt"
    either = "tensorrt and a GPU (extra 'gpu'), or on any machine tensorrt_rtx"
    return _load("tensorrt_rtx", either, "rtx"), "tensorrt_rtx"


def _load(library: Library, wanted: str, extra: str) -> ModuleType:
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(wanted, extra, _PURPOSE) from error
    except ImportError as error:
        raise ExportError(f"{library} must be loadable, got: {error}. Install it again.") from error


@cache
def logger_of(library: ModuleType) -> Any:
    """The process's logger for this library: an ``ILogger`` with a list of ``errors``.

    A failed call answers with None or False; its reason is only in the log. TensorRT keeps the
    first logger it is given while anything built with it lives, hence one for all. Clear ``errors``
    before a call whose reasons matter.
    """
    severities = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[misc, name-defined]  # known when it is imported
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == severities.WARNING:
                log.warning("%s", text)

    return Logger()


def make_monitor(library: ModuleType) -> Any:
    """An ``IProgressMonitor`` that tells in ``text`` what goes on and stops when ``cancelled``."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]  # as Logger
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.n_steps: dict[str, int] = {}
            self.text = ""
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.n_steps[phase_name] = num_steps
            self.text = phase_name.lower()

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.text = f"{phase_name.lower()}, {step + 1} of {self.n_steps[phase_name]}"
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            """Its parent's next step replaces the text."""

    return Monitor()


def make_writer(library: ModuleType, file: BinaryIO) -> Any:
    """An ``IStreamWriter`` into a file that keeps the first ``error``, as it may not raise."""

    class Writer(library.IStreamWriter):  # type: ignore[misc, name-defined]  # as Logger
        def __init__(self) -> None:
            library.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            if self.error is None:
                try:
                    return file.write(data)
                except OSError as error:
                    self.error = error
            return 0

    return Writer()


def listed(problems: Sequence[str]) -> str:
    """The first three of what went wrong, and how many more there are."""
    more = f" ({len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
