"""What a training takes: the memory of it, and how long a batch takes merged and unmerged."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from glora_deploy.machine import Machine
from glora_deploy.release_memory import release_memory
from glora_deploy.store.cost_record import CostRecord

BATCH = 8
"""Images of the batch that is timed, at most."""
_FEWEST, _MOST = 3, 15
"""Turns."""
_LONG_ENOUGH_S = 5.0
"""Of turns; a large network on a CPU gets no more than the fewest."""
_SLACK_BYTES = 32 * 2**20
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Most memory that was taken in a block."""

    n_bytes: int | None = None
    """None until the block has ended, and where the system does not tell."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure a block: the tensors on a GPU, else what the process has resident.

    On Linux alone a process can ask for its peak anew; elsewhere, and where that is not allowed,
    nothing is told.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.n_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    resident = _resident_from_now()
    yield found
    if resident is not None and (most := _status("VmHWM")) is not None:
        found.n_bytes = max(0, most - resident)


def cost_of(
    merged: nn.Module, unmerged: nn.Module, images: Tensor, peak: Peak, device: torch.device
) -> CostRecord:
    """Time two networks of the same task by turns.

    Args:
        merged: Vanilla, in eval mode.
        unmerged: As it was trained, in eval mode.
        images: A batch, preprocessed, ``(n, 3, h, w)``, on the device.
        peak: Of the training.
        device: Where all of them are.
    """
    networks = (merged, unmerged)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for network in networks:  # the first call of each chooses kernels
            network(images)
        while len(times[0]) < _FEWEST or (
            len(times[0]) < _MOST and sum(map(sum, times)) < _LONG_ENOUGH_S
        ):
            for network, taken in zip(networks, times, strict=True):
                taken.append(_seconds(partial(network, images), device))
    merged_ms, unmerged_ms = (1e3 * statistics.median(taken) for taken in times)
    return CostRecord(
        machine=Machine.here(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        peak_memory_bytes=peak.n_bytes,
        batch_size=len(images),
        merged_ms=merged_ms,
        unmerged_ms=unmerged_ms,
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident_from_now() -> int | None:
    """What the process has resident, in bytes; its peak counts from here on. None if it cannot."""
    gc.collect()
    release_memory()  # of a training before
    with suppress(OSError):
        _RESET.write_text("5")
        resident, peak = _status("VmRSS"), _status("VmHWM")
        # Some systems take the request and keep the old peak.
        if resident is not None and peak is not None and peak < resident + _SLACK_BYTES:
            return resident
    return None


def _status(name: str) -> int | None:
    """A figure of this process, in bytes."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
