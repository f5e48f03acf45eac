"""The machine of a measurement: what may make its numbers others elsewhere.

Torch-free. A measurement holds where it was made. Beside what is installed, the instructions that
a CPU has decide how a library multiplies, and so how it rounds, or saturates.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .strict_record import Count, Line, Record

INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"),
)
"""Those by which ONNX Runtime and torch choose how to multiply, as Linux names them: x86 first,
then Arm. VNNI, AMX and every one of Arm's add 8-bit products in 32 bits."""

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch")
"""What computes; those that are installed are recorded."""

VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
"""Of the environment: they choose threads, instructions or TF32 over the head of the caller."""

_CPUINFO = Path("/proc/cpuinfo")


class Machine(Record):
    """A CPU, what it can do, and what computed on it."""

    cpu: Line
    """Its name; its architecture where the system tells no name."""
    architecture: Line
    """``x86_64``, ``aarch64``, ..."""
    instruction_sets: tuple[Line, ...]
    """Those of ``INSTRUCTION_SETS`` that it has; off Linux, the groups that NumPy tells."""
    cpus: Count
    """CPUs that the process might use."""
    environment: dict[Line, Line]
    """Those of ``VARIABLES`` that are set."""
    libraries: dict[Line, Line]
    """Library to version."""

    @classmethod
    def here(cls) -> Machine:
        """The machine that this runs on."""
        info = _cpuinfo()
        architecture = platform.machine() or "unknown"
        cpu = info.get("model name") or platform.processor() or architecture
        return cls(
            cpu=_line(cpu),
            architecture=architecture,
            instruction_sets=_instruction_sets(info),
            cpus=_usable_cpus(),
            environment={
                name: _line(os.environ[name]) for name in VARIABLES if os.environ.get(name)
            },
            libraries={name: found for name in LIBRARIES if (found := _version(name))},
        )

    def __str__(self) -> str:
        """Name and instruction sets on one line."""
        return f"{self.cpu} ({', '.join(self.instruction_sets) or self.architecture})"

    def computes_like(self, other: Machine) -> bool:
        """Whether both have the same instructions: threads and library versions may differ."""
        return (self.architecture, self.instruction_sets) == (
            other.architecture,
            other.instruction_sets,
        )


def _cpuinfo() -> Mapping[str, str]:
    """The first CPU of Linux's list, by field; empty elsewhere."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _instruction_sets(info: Mapping[str, str]) -> tuple[str, ...]:
    """``flags`` on x86, ``Features`` on Arm; NumPy tells groups of them on other systems."""
    if listed := info.get("flags", info.get("Features")):
        has = set(listed.split())
        return tuple(name for name in INSTRUCTION_SETS if name in has)
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return tuple(name.lower() for name in (*found["baseline"], *found["found"]))


def _line(text: str) -> str:
    """What a record takes for a line: no controls, not too long, not empty."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:200] or "unknown"


def _usable_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
