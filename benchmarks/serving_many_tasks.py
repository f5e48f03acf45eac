"""A thousand tasks of one backbone in one process: start, index and memory.

The network is small, so that what each task costs stands out::

    python benchmarks/serving_many_tasks.py --tasks 1000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from serving_store import SMALL, export_first, fill_store, make_backbone

SERVE = """
import json, sys, time
import numpy as np
from pathlib import Path
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings

def pss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])

root, n_tasks = sys.argv[1], int(sys.argv[2])
found = {}
start = time.perf_counter()
engine = StoreEngine(root, EngineSettings(threads=2, memory_budget_bytes=64 * 2**20))
found["start s"] = time.perf_counter() - start
start = time.perf_counter()
index = engine.versions()
found["index s"] = time.perf_counter() - start
assert len(index) == n_tasks and all(one.state == "READY" for one in index)
start = time.perf_counter()
engine._live.poll()
found["one look at the store s"] = time.perf_counter() - start
found["memory after the start MB"] = pss() / 1e6
images = np.zeros((1, 3, 32, 32), np.float32)
start = time.perf_counter()
for index in range(n_tasks):
    engine.submit(InferRequest(task=f"t{index}", images=images)).result()
found["one answer of every task s"] = time.perf_counter() - start
found["memory after it MB"] = pss() / 1e6
usage = engine.usage()
found["merged weights in memory MB"] = usage.weights_bytes / 1e6
found["deltas in memory MB"] = engine._weights.deltas.size_bytes / 1e6
found["budget MB"] = usage.budget_bytes / 1e6
found["backbone MB"] = usage.backbone_bytes / 1e6
engine.close()
print(json.dumps(found))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1000)
    n_tasks = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "artifacts"
        backbone = make_backbone("vit_tiny_patch16_224", **SMALL)
        export_first(fill_store(root, backbone, n_tasks))
        command = [sys.executable, "-c", SERVE, str(root), str(n_tasks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    for name, value in json.loads(done.stdout).items():
        print(f"{name:<32}{value:10.3f}")


if __name__ == "__main__":
    main()
