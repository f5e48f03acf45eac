"""A store whose tasks cannot be taken for one another, and ever new versions of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from serving_store import SMALL, fill_store, make_backbone

from glora_deploy.evaluation.delta_network import merged_network
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore

from .ledger import Ledger, Published

N_IMAGES = 4
N_CLASSES = 10
SCALE = 3.0
"""Of heads: logits of two versions differ by tens, rounding by 1e-5."""

FULL_DISK = """
import resource, signal, sys
from glora_deploy.errors import GloraDeployError
from glora_deploy.store.store import ArtifactStore

store = ArtifactStore.open(sys.argv[1])
base = store.get("t0")
tensors = base.tensors()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.put(sys.argv[2], tensors, base.manifest)
except (GloraDeployError, OSError):
    sys.exit(0)
sys.exit(1)
"""


class Tasks:
    """Tasks ``t0``, ``t1``, ... of one small backbone, and what each version of them computes.

    Args:
        root: Of the store, which is made.
        n_tasks: How many.
        ledger: Is told of every version before it can answer.
        seed: Of all that is drawn.
    """

    def __init__(self, root: Path, n_tasks: int, ledger: Ledger, *, seed: int = 0) -> None:
        backbone = make_backbone(**SMALL)
        self.store: ArtifactStore = fill_store(root, backbone, 1, n_classes=N_CLASSES)
        self._base = self.store.get("t0")
        self._tensors = {name: np.array(value) for name, value in self._base.tensors().items()}
        self.names = [f"t{index}" for index in range(n_tasks)]
        self.images: NDArray[np.float32] = np.random.default_rng(seed).standard_normal(
            (N_IMAGES, 3, 32, 32), np.float32
        )
        self.origin = root.with_suffix(".npz")
        """The tensors that every version is drawn around."""
        np.savez(self.origin, **self._tensors)
        self._ledger = ledger
        self._seeds = itertools.count(1000 * (seed + 1))
        self._lock = threading.Lock()
        done = export(self.store, self._base, ExportConfig(formats=("merged", "onnx"), n_images=2))
        assert done.report.passed
        self.learn(self._base)
        for name in self.names[1:]:
            self.store.set_current(name, self.add(name).version)
        for name in self.names:
            ledger.may_answer(name, "v1")

    def add(self, task: str) -> Artifact:
        """One more version, which is not current: the ledger knows what it computes before."""
        with self._lock:
            seed = next(self._seeds)
        rng = np.random.default_rng(seed)
        tensors = {
            name: (
                value + rng.normal(0, 0.02, value.shape)
                if not self._base.manifest.is_head(name)
                else rng.normal(0, SCALE, value.shape)
            ).astype(value.dtype)
            for name, value in self._tensors.items()
        }
        artifact = self.store.put(task, tensors, self._base.manifest, make_current=False)
        self.learn(artifact)
        return artifact

    def add_to_a_full_disk(self, task: str) -> int:
        """Have a process fail to put one that may write files of 4 kB at most; its status."""
        command = [sys.executable, "-c", FULL_DISK, str(self.store.root), task]
        return subprocess.run(command, check=False, capture_output=True).returncode

    @torch.inference_mode()
    def learn(self, artifact: Artifact) -> None:
        """Compute what a version must answer, in float64, and tell the ledger."""
        network = merged_network(self.store, artifact).double()
        logits = network(torch.from_numpy(self.images).double()).numpy()
        digest = artifact.manifest.adapter.sha256
        self._ledger.publish(Published(artifact.task, artifact.version, digest, logits))
