"""An exported task, and what a push of it to a Hub on this machine and a pull from it need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora_deploy.export.hub.push_pull import pull, push
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from hub_server import WRITE, Files, HubServer

REPO = "ann/pets"
NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""
DELTA = {"glora/manifest.json", "glora/adapter.safetensors"}
MERGED = {"config.json", "model.safetensors", "parity.json", "README.md"} | DELTA


@dataclass
class Pushed:
    """A store with one exported task, and what a push of it needs."""

    hub: HubServer
    store: ArtifactStore
    artifact: Artifact

    def push(self, repo: str = REPO, **changes: Any) -> str:
        known: dict[str, Any] = {
            "token": WRITE,
            "endpoint": self.hub.endpoint,
            "delays_s": (0.01, 0.01),
        }
        return push(self.store, self.artifact, "fp32", repo, **known | changes)

    def pull(self, root: Path, **changes: Any) -> Artifact:
        known: dict[str, Any] = {"endpoint": self.hub.endpoint, "delays_s": (0.01, 0.01)}
        return pull(ArtifactStore(root), REPO, **known | changes)

    @property
    def folder(self) -> Path:
        return self.store.export_dir(self.artifact, "fp32")

    @property
    def files(self) -> Files:
        return self.hub.repos[REPO].files()
