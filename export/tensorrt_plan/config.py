"""What a TensorRT plan is asked to be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glora_deploy.precision import Precision
from glora_deploy.tensorrt_runtime.plan_json import Backend, HardwareCompatibility


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """How to build a plan."""

    precision: Precision = "fp32"
    """Type of the graph's weights; the plan computes in the types that the graph states."""
    batch: tuple[int, int, int] = (1, 8, 32)
    """Least, best and most images per call: the optimisation profile."""
    compute_capabilities: tuple[str, ...] | None = None
    """GPUs to build for, such as ``("8.6", "12.0")``; only TensorRT-RTX can choose. None leaves it
    to the library: Ampere and newer with TensorRT-RTX, the GPU of this machine with TensorRT."""
    hardware_compatibility: HardwareCompatibility | None = None
    """Let the plan run on more than this machine's GPU, at some speed; TensorRT only."""
    timing_cache: Path | None = None
    """File of kernel timings to reuse and extend; TensorRT only."""
    refit: bool = False
    """Build a plan whose weights can be exchanged: one engine for many tasks."""
    strip: bool = False
    """Leave the weights out; loading the plan reads them from the ONNX model beside it."""
    backend: Backend = "auto"
    """Library to build with; ``auto`` is TensorRT where there is a GPU for it, else RTX."""

    def __post_init__(self) -> None:
        least, best, most = self.batch
        if not 1 <= least <= best <= most:
            raise ValueError(f"batch must be 1 <= min <= opt <= max, got {self.batch}")
        for capability in self.compute_capabilities or ():
            if not re.fullmatch(r"[1-9][0-9]?\.[0-9]", capability):
                raise ValueError(f"compute capability must look like 8.6, got {capability!r}")
        if self.compute_capabilities == ():
            raise ValueError("compute_capabilities must name at least one, or be None")
