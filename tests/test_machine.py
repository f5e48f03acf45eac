from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy import machine
from glora_deploy.machine import INSTRUCTION_SETS, Machine

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core   Processor
flags\t\t: fpu sse2 fma avx avx2 avx512_vnni_like

processor\t: 1
model name\t: another
flags\t\t: avx512_vnni
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
"""


def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str | None) -> Machine:
    """The machine whose list of CPUs is this text; without one, the system has no such list."""
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPUINFO", path)
    return Machine.here()


def test_the_first_cpu_tells_its_name_and_its_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = on(monkeypatch, tmp_path, X86)
    assert here.cpu == "AMD EPYC 7763 64-Core Processor"
    assert here.instruction_sets == ("avx2", "fma")
    assert str(here) == "AMD EPYC 7763 64-Core Processor (avx2, fma)"


def test_an_arm_cpu_that_has_no_name_is_known_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.processor", lambda: "")
    here = on(monkeypatch, tmp_path, ARM)
    assert (here.cpu, here.architecture) == ("aarch64", "aarch64")
    assert here.instruction_sets == ("asimd", "asimdhp", "asimddp")


def test_where_the_system_lists_no_cpus_numpy_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {"SIMD Extensions": {"baseline": ["NEON"], "found": ["ASIMDDP"], "not found": ["SVE"]}}
    monkeypatch.setattr("numpy.show_config", lambda mode: found if mode == "dicts" else None)
    assert on(monkeypatch, tmp_path, None).instruction_sets == ("neon", "asimddp")
    monkeypatch.undo()
    assert machine._instruction_sets({}), "NumPy's own answer has another form"


def test_variables_that_change_numbers_are_recorded_where_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in machine.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", " 3\x07,1 ")
    monkeypatch.setenv("MKL_NUM_THREADS", "")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert Machine.here().environment == {"OMP_NUM_THREADS": "3 ,1", "NVIDIA_TF32_OVERRIDE": "1"}


def test_the_record_of_a_machine_can_be_read_back() -> None:
    here = Machine.here()
    assert Machine.model_validate_json(here.model_dump_json()) == here
    assert here.cpus >= 1
    assert "torch" in here.libraries


def test_machines_compute_alike_if_they_have_the_same_instructions() -> None:
    here = Machine.here()
    busy = here.model_copy(update={"cpu": "another", "cpus": 99, "environment": {}})
    assert here.computes_like(busy)
    assert not here.computes_like(here.model_copy(update={"instruction_sets": ("avx2",)}))
    assert not here.computes_like(here.model_copy(update={"architecture": "riscv64"}))
    assert len(set(INSTRUCTION_SETS)) == len(INSTRUCTION_SETS)
