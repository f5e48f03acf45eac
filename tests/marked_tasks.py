"""Tasks that cannot be taken for one another: each puts one class of its own far above the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from stored_tasks import merged_state

OpenEngine = Callable[..., StoreEngine]
"""Opens an engine on a store; fields of its settings by name."""

N_TASKS = 6
"""In the store ``marked``: t0 to t5."""

MARK = 1000.0
"""What the bias of a task's own class is raised by; no other logit comes near."""


def add_marked_task(
    store: ArtifactStore,
    base: Artifact,
    task: str,
    *,
    mark: int,
    n_classes: int = 8,
    seed: int = 0,
    make_current: bool = True,
) -> Artifact:
    """One more version of a task: supports near those of ``base``, a head of its own.

    Args:
        store: Gets it; holds ``base``.
        base: Of the same backbone.
        task: Its name.
        mark: The class that every image is answered with.
        n_classes: Rows of the head.
        seed: Of supports and head.
        make_current: Whether it answers from now on.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, value in base.tensors().items():
        if not base.manifest.is_head(name):
            tensors[name] = value + rng.normal(0, 0.02, value.shape).astype(value.dtype)
        elif value.ndim == 1:
            tensors[name] = np.where(np.arange(n_classes) == mark, MARK, 0).astype(value.dtype)
        else:
            tensors[name] = rng.normal(0, 1, (n_classes, *value.shape[1:])).astype(value.dtype)
    labels = tuple(f"class {index}" for index in range(n_classes))
    draft = base.manifest.model_copy(update={"labels": labels})
    return store.put(task, tensors, draft, make_current=make_current)


@torch.inference_mode()
def reference_logits(
    store: ArtifactStore, artifact: Artifact, images: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What the merged network answers in float64, computed by torch."""
    backbone = artifact.manifest.backbone
    model = timm.create_model(
        backbone.name, num_classes=len(artifact.manifest.labels), **backbone.model_args
    )
    model.double().eval().load_state_dict(merged_state(store, artifact))
    logits: NDArray[np.float64] = model(torch.from_numpy(images).double()).numpy()
    return logits
