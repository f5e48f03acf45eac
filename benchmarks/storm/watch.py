"""What a server takes of the machine while it runs, once a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """Of all of a server's processes together."""

    own_mb: float
    """Memory that is no file's: what else is mapped depends on who else maps it."""
    threads: int
    descriptors: int


@dataclass
class Samples:
    """Those of one run; the first third is warm-up."""

    all: list[Sample] = field(default_factory=list)

    def growth(self, of: Callable[[Sample], float]) -> tuple[float, float]:
        """Medians of the second and of the last third."""
        third = len(self.all) // 3
        middle, last = self.all[third : 2 * third], self.all[2 * third :]
        return median(map(of, middle)), median(map(of, last))


def sample(pids: Sequence[int]) -> Sample:
    """Now; what several processes share counts once."""
    own = threads = descriptors = 0
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            lines = (folder / "smaps_rollup").read_text().splitlines()
            (stated,) = [line for line in lines if line.startswith("Pss_Anon:")]
            own += 1024 * int(stated.split()[1])
            threads += len(list((folder / "task").iterdir()))
            descriptors += len(list((folder / "fd").iterdir()))
    return Sample(own / MB, threads, descriptors)


def watch(pids: Callable[[], Sequence[int]], samples: Samples, until: Callable[[], bool]) -> None:
    """Sample until the time has come."""
    while not until():
        samples.all.append(sample(pids()))
        time.sleep(1.0)
