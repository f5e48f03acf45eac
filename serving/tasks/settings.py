"""How the engine runs: what a server's flags become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from glora_deploy.precision import Precision

Backend = Literal["onnxruntime", "torch", "tensorrt"]
MixedBatches = Literal["auto", "off"]

DEFAULT_RANK = 2
"""Priority of requests that name none: 1 goes before them, 3 and more after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of a ``StoreEngine``; the defaults serve a ViT-B/16 on a small machine."""

    backend: Backend = "onnxruntime"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "fp32"
    """Of the weights; below fp32 each version needs an export of its own in it."""
    int8: bool = False
    """Answer from a version's own int8 model, where its export in ``precision`` holds a usable
    one; its size counts against the budget."""
    threads: int | None = None
    """Threads within an operator; the runtime's own choice if None."""
    memory_budget_bytes: int = 2 * 2**30
    """For merged weights and kept deltas. While a task is merged, one more task's weights lie
    beside them; the backbone and the runtime's own memory come on top."""
    max_batch: int = 16
    """Images of one request at most, and of one batch."""
    max_delay_ms: float = 0.0
    """How long a batch that is not full waits for more; what comes while another one is computed
    is batched in any case."""
    max_queue: int = 256
    """Images that may wait; a request beyond them is refused, and so is one of a task that already
    has as many as it would leave free for others."""
    prefetch: tuple[str, ...] = ()
    """Tasks whose weights are merged before the engine is ready."""
    pins: tuple[str, ...] = ()
    """Tasks that are prefetched and stay in memory."""
    hot_after: int | None = 64
    """Batches from one merge after which a task's weights are laid out as constants in the
    background, which answers faster and takes as much memory again; None never does."""
    mixed_batches: MixedBatches = "auto"
    """Whether deltas that allow it are answered together in one batch."""
    watch_s: float | None = 2.0
    """How often the store is looked at for new versions; None leaves that to ``load``."""
    allow_unproven: bool = False
    """Serve a version although its own export failed its parity check."""
    require_proven: bool = False
    """Refuse a version without an export of its own that passed its parity check."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {self.backend!r}")
        if self.mixed_batches not in get_args(MixedBatches):
            raise ValueError(f"mixed_batches must be auto or off, got {self.mixed_batches!r}")
        for field, least in (
            ("max_batch", 1),
            ("max_queue", self.max_batch),
            ("memory_budget_bytes", 0),
            ("max_delay_ms", 0),
        ):
            if not (value := getattr(self, field)) >= least:
                raise ValueError(f"{field} must be at least {least}, got {value}")
        if self.hot_after is not None and self.hot_after < 1:
            raise ValueError(f"hot_after must be at least 1 or None, got {self.hot_after}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.watch_s is not None and not self.watch_s > 0:
            raise ValueError(f"watch_s must be positive or None, got {self.watch_s}")
        if self.backend == "torch" and self.precision != "fp32":
            raise ValueError(f"precision must be fp32 with torch, got {self.precision!r}")
        if self.backend == "tensorrt" and self.device != "cuda":
            raise ValueError("device must be cuda with tensorrt, got cpu")
        if self.int8 and (self.backend, self.device) != ("onnxruntime", "cpu"):
            raise ValueError("int8 must be served by onnxruntime on the CPU")
        if self.allow_unproven and self.require_proven:
            raise ValueError("allow_unproven and require_proven must not both be set")
