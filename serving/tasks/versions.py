"""One version of a task while the server runs: what it is, whether it answers, and why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import Format

from .contract import ServedVersion, State
from .statistics import VersionCounts

if TYPE_CHECKING:
    from .networks import Loaded


@dataclass(eq=False)
class LiveVersion:
    """A version as it was read from the store; a version that is read anew is a new one.

    Identity is what requests and weights are bound to: a version that was replaced under its own
    name never answers for the other.
    """

    artifact: Artifact
    state: State = "READY"
    reason: str = ""
    requests: int = 0
    """Admitted and not yet answered."""
    counts: VersionCounts = field(default_factory=VersionCounts)
    pool: object | None = None
    """What versions that may share a batch have in common; None for one that never does."""
    exported: Format | None = None
    """The format of its own export that it is answered from; None where it is merged."""
    loaded: Loaded | None = None
    """What it runs on, once that was looked up, which takes longer than a swap."""

    @property
    def name(self) -> str:
        """Task and version, as errors name them."""
        return f"{self.artifact.task}/{self.artifact.version}"

    @cached_property
    def about(self) -> ServedVersion:
        """What does not change about it."""
        manifest = self.artifact.manifest
        return ServedVersion(
            task=manifest.task,
            version=manifest.version,
            is_current=False,
            state="LOADING",
            delta_sha256=manifest.adapter.sha256,
            backbone=manifest.backbone.name,
            labels=manifest.labels,
            preprocessing=Preprocessing(**manifest.preprocessing.model_dump()),
            input_shape=manifest.backbone.input_size,
        )
