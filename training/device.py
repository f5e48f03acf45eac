"""Where a run computes, and how it computes the same bits twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch

from .config import DeviceName


def choose_device(name: str) -> torch.device:
    """The device asked for; ``auto`` takes CUDA where there is one.

    Raises:
        ValueError: If the name is unknown, or there is no CUDA device and one was asked for.
    """
    if name not in get_args(DeviceName):
        raise ValueError(f"device must be one of {', '.join(get_args(DeviceName))}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda must be available, torch finds none. Use --device cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Deterministic kernels and a private global generator, put back as they were afterwards.

    On the CPU torch's kernels are deterministic for a given number of threads; change that number
    with ``torch.set_num_threads`` or OMP_NUM_THREADS, never here.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        # cuBLAS reads it when its first handle is made; without it torch refuses to multiply.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
