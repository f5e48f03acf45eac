"""Writes the golden store of the present format: python tests/golden/write.py [FOLDER].

Run it once per released format version, and again where what is written changes within one, with
the release's own code, and commit the result; a folder that is committed is never written again.
``tests/store/test_artifact.py`` keeps every one readable, and keeps writing to the very bytes of
the last.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from factories import make_draft
from glora_deploy.store.artifact import write_artifact
from glora_deploy.store.manifest import FORMAT_VERSION

TASK = "pets"
DTYPES: dict[str, Any] = {"v1": np.float32, "v2": np.float16, "v3": ml_dtypes.bfloat16}
UNBOUND = Path(__file__).parent / f"v{FORMAT_VERSION}"
"""Adapters without the digest of their manifests, as they were written at first."""
FOLDER = Path(__file__).parent / f"v{FORMAT_VERSION}-bound"


def golden_tensors(version: str) -> dict[str, NDArray[Any]]:
    """Multiples of 1/16 that every dtype holds exactly, another start for each tensor."""
    draft = make_draft()
    shapes = {**draft.support_shapes(), "head.weight": (4, 5), "head.bias": (4,)}
    return {
        name: ((np.arange(np.prod(shape)) + start) % 113 / 16 - 3)
        .reshape(shape)
        .astype(DTYPES[version])
        for start, (name, shape) in enumerate(shapes.items())
    }


def write_golden(folder: Path) -> None:
    """One task with a version in each dtype, v2 current."""
    for day, version in enumerate(DTYPES, start=1):
        place = folder / TASK / version
        place.mkdir(parents=True)
        created = f"2026-01-0{day}T00:00:00.000000Z"
        tensors = golden_tensors(version)
        write_artifact(place, make_draft(), tensors, task=TASK, version=version, created=created)
    (folder / TASK / "current").write_text("v2\n")


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
