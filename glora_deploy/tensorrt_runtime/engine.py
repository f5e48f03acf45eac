"""A plan in GPU memory: run it, time it, give it another task's weights. Needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ExportError, NotRunnableError
from ..store.export_record import MODEL_FILE, PLAN_FILE
from .library import (
    Context,
    CudaEngine,
    ParserRefitter,
    Refitter,
    Runtime,
    find_gpu,
    listed,
    load_tensorrt,
    logger_of,
)
from .plan_json import read_plan_info, require_runnable

_TENSORRT_NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


class Engine:
    """The plan of an export folder, loaded on the current CUDA device. Not thread-safe.

    A stripped plan takes its weights from the ONNX model of the folder.

    Args:
        folder: Holds ``model.plan`` and ``plan.json``.

    Raises:
        ArtifactError: If the files are missing or are not those of the sidecar.
        MissingDependencyError: If the library that built the plan is not installed.
        NotRunnableError: If this machine has no GPU that the plan runs on; says why.
        ExportError: If the library refuses the plan for another reason.
    """

    def __init__(self, folder: Path) -> None:
        self.info = read_plan_info(folder)
        gpu = find_gpu()
        library, name = load_tensorrt("rtx" if self.info.library == "tensorrt_rtx" else "tensorrt")
        require_runnable(
            self.info,
            library=name,
            version=library.__version__,
            capability=gpu.capability if gpu else None,
        )
        self._library = library
        logger = logger_of(library)
        logger.errors.clear()
        runtime: Runtime = library.Runtime(logger)
        plan = np.memmap(folder / PLAN_FILE, np.uint8, "r").data
        require_covered(library, runtime, plan)
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ExportError(f"{folder / PLAN_FILE}: {name} must load it, got {_last(logger)}")
        if self.info.stripped:
            _fill(library, self._engine, folder / MODEL_FILE)
        self._context: Context | None = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` float32 of images ``(n, c, h, w)`` float32.

        Raises:
            ValueError: If n is not within the plan's batch, or the images are of another size.
            ExportError: If TensorRT fails, or a failed refit has spoilt the engine.
        """
        with torch.cuda.stream(self._stream):
            x = torch.from_numpy(np.ascontiguousarray(images, np.float32)).cuda()
            y = self._bind(x)
            self._enqueue()
            found: NDArray[np.float32] = y.cpu().numpy()
        return found

    def time_ms(self, batch: int, repeats: int) -> float:
        """Median GPU time of one call on ``batch`` images, in milliseconds, after warming up.

        Copies to and from the GPU are not part of it.

        Raises:
            ValueError, ExportError: As :meth:`logits`.
        """
        times = []
        with torch.cuda.stream(self._stream):
            x = torch.rand(batch, *self.info.inputs[0].shape[1:], device="cuda")
            y = self._bind(x)
            for _ in range(10):
                self._enqueue()
            for _ in range(repeats):
                self._stream.synchronize()
                start, end = _event(), _event()
                start.record()
                self._enqueue()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
        del y  # the engine wrote to it until here
        return float(np.median(times))

    def refit(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Exchange every weight: the engine then answers for another task of the backbone.

        Args:
            tensors: At least ``info.parameters``, in the dtypes of the graph, such as
                ``map_tensors`` gives of the other task's ``model.safetensors``.

        Raises:
            ValueError: If a tensor is missing, or of another dtype or size; the engine is
                unchanged.
            ExportError: If the plan was not built to be refitted, or TensorRT refuses. In the
                second case the engine may hold a mixture and answers no more: load it again.
        """
        if not self.info.refittable:
            raise ExportError(f"{PLAN_FILE}: must be built with refit to take other weights.")
        refitter: Refitter = self._library.Refitter(self._engine, logger_of(self._library))
        kept = set_weights(self._library, refitter, self.info.parameters, tensors)
        context, self._context = self._context, None
        refit(self._library, refitter)
        self._context = context
        del kept  # the refitter read from it until here

    def _bind(self, x: torch.Tensor) -> torch.Tensor:
        (image,), (logits,) = self.info.inputs, self.info.outputs
        least, _, most = self.info.batch
        n, *size = x.shape
        if not least <= n <= most or tuple(size) != image.shape[1:]:
            raise ValueError(
                f"images must be {least} to {most} of {image.shape[1:]}, got {tuple(x.shape)}"
            )
        y = torch.empty(n, *logits.shape[1:], device="cuda")
        context = self._usable()
        context.set_input_shape(image.name, tuple(x.shape))
        context.set_tensor_address(image.name, x.data_ptr())
        context.set_tensor_address(logits.name, y.data_ptr())
        return y

    def _enqueue(self) -> None:
        if not self._usable().execute_async_v3(self._stream.cuda_stream):
            raise ExportError(f"{PLAN_FILE}: must run, got {_last(logger_of(self._library))}")

    def _usable(self) -> Context:
        if self._context is None:
            raise ExportError(f"{PLAN_FILE}: a refit failed half-way. Load the engine again.")
        return self._context


def set_weights(
    library: ModuleType,
    refitter: Any,
    parameters: Sequence[str],
    tensors: Mapping[str, NDArray[Any]],
) -> list[NDArray[Any]]:
    """Hand a complete set of weights to a ``Refitter``.

    Completeness is judged by ``parameters``: a set that leaves some out would make a blend of two
    tasks, and TensorRT-RTX may report nothing missing. Other tensors are left alone.

    Returns:
        The arrays the refitter points at; keep them until it has run.

    Raises:
        ValueError: If a parameter is missing, or of another dtype or size; none is then set.
        ExportError: If the engine cannot exchange one of the parameters.
    """
    if missing := sorted(set(parameters) - tensors.keys()):
        raise ValueError(
            f"tensors must hold all {len(parameters)} weights of the plan, got none for "
            f"{listed(missing)}"
        )
    if fixed := sorted(set(parameters) - set(refitter.get_all_weights())):
        raise ExportError(
            f"{PLAN_FILE}: every weight must be refittable, got {listed(fixed)} fixed."
        )
    kept = {name: np.ascontiguousarray(tensors[name]) for name in parameters}
    dtypes = {}
    for name, tensor in kept.items():
        wanted = refitter.get_weights_prototype(name)
        dtype = _TENSORRT_NAMES.get(tensor.dtype.name)
        if (dtype, tensor.size) != (wanted.dtype.name, wanted.size):
            raise ValueError(
                f"{name}: must be {wanted.size} numbers of type {wanted.dtype.name}, "
                f"got {tensor.size} of {tensor.dtype.name}"
            )
        dtypes[name] = wanted.dtype
    for name, tensor in kept.items():
        weights = library.Weights(dtypes[name], tensor.ctypes.data, tensor.size)
        if not refitter.set_named_weights(name, weights):
            raise ExportError(f"{name}: TensorRT must take it, got {_last(logger_of(library))}")
    return list(kept.values())


def refit(library: ModuleType, refitter: Any) -> None:
    """Put what a ``Refitter`` was given into its engine.

    Raises:
        ExportError: If weights are missing or TensorRT fails.
    """
    if missing := refitter.get_missing_weights():
        raise ExportError(f"{PLAN_FILE}: a refit must be complete, {listed(missing)} are missing.")
    if not refitter.refit_cuda_engine():
        raise ExportError(f"{PLAN_FILE}: must be refitted, got {_last(logger_of(library))}")


def _fill(library: ModuleType, engine: CudaEngine, graph: Path) -> None:
    logger = logger_of(library)
    refitter: Refitter = library.Refitter(engine, logger)
    source: ParserRefitter = library.OnnxParserRefitter(refitter, logger)
    if not source.refit_from_file(str(graph)):
        raise ExportError(f"{graph}: must fill the stripped plan beside it, got {_last(logger)}")
    refit(library, refitter)


def require_covered(library: ModuleType, runtime: Any, plan: memoryview) -> None:
    """Check that the GPUs a plan is for, as the library knows them, include the one here.

    TensorRT-RTX covers no data-centre GPU of Hopper's kind, though it is newer than Ampere.

    Raises:
        NotRunnableError: If they do not; names the GPU.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    _, diagnostics = runtime.get_engine_validity(plan)
    if diagnostics & int(library.EngineInvalidityDiagnostics.UNSUPPORTED_CC):
        gpu = find_gpu()
        name = f"{gpu.name}, compute capability {gpu.capability}" if gpu else "none"
        raise NotRunnableError(
            f"{PLAN_FILE}: must run on a GPU that {library.__name__} supports, got {name}. "
            "Build it with the other TensorRT library, or use the ONNX model."
        )


def _last(logger: Any) -> str:
    return listed(logger.errors[-1:]) or "no reason"


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
