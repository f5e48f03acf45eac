"""What a training took: its peak of memory, and a batch merged and unmerged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glora_deploy.training import cost
from glora_deploy.training.cost import Peak, cost_of, peak_memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak anew")
def test_the_peak_is_that_of_the_block_alone() -> None:
    before = np.ones(300 * MIB, np.uint8)
    del before
    with peak_memory(CPU) as peak:
        inside = np.ones(200 * MIB, np.uint8)
        del inside
    if peak.n_bytes is None:
        pytest.skip("this system does not let a process ask for its peak anew")
    assert 190 * MIB < peak.n_bytes < 290 * MIB


def test_a_system_that_tells_no_peak_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cost, "_RESET", tmp_path / "not" / "there")
    with peak_memory(CPU) as peak:
        pass
    assert peak.n_bytes is None


def test_a_system_that_keeps_the_old_peak_tells_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text("VmHWM:  900000 kB\nVmRSS:  100000 kB\n")
    monkeypatch.setattr(cost, "_RESET", tmp_path / "reset")
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "status")
    with peak_memory(CPU) as peak:
        pass
    assert peak.n_bytes is None


class Counted(nn.Module):
    """Counts its calls, and notes whose turn it was."""

    def __init__(self, name: str, turns: list[str]) -> None:
        super().__init__()
        self.name, self.turns = name, turns

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        self.turns.append(self.name)
        return images


def test_both_networks_are_timed_by_turns_after_one_call_each() -> None:
    turns: list[str] = []
    networks = (Counted("merged", turns), Counted("unmerged", turns))
    found = cost_of(*networks, torch.zeros(5, 3, 2, 2), Peak(7), CPU)
    assert turns == ["merged", "unmerged"] * (len(turns) // 2)
    assert 1 + cost._FEWEST <= len(turns) // 2 <= 1 + cost._MOST
    assert (found.batch_size, found.device, found.peak_memory_bytes) == (5, "cpu", 7)
    assert found.merged_ms > 0
    assert found.slowdown == found.unmerged_ms / found.merged_ms
