"""Tasks that cannot be taken for one another: each puts one class of its own far above the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from glora_deploy.glora.forms import LayerForms
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.manifest import LayerRecord
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
    forms: str | None = None,
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
        forms: Of every linear layer, the other layers being left alone; as in ``base`` if None.
    """
    rng = np.random.default_rng(seed)
    draft = base.manifest
    given = base.tensors()
    if forms is not None:
        draft = draft.model_copy(update={"layers": dict(_layers(base, LayerForms.parse(forms)))})
        head = {name: value for name, value in given.items() if draft.is_head(name)}
        given = {n: np.zeros(s, np.float32) for n, s in draft.support_shapes().items()} | head
    tensors = {}
    for name, value in given.items():
        if not base.manifest.is_head(name):
            tensors[name] = value + rng.normal(0, 0.02, value.shape).astype(value.dtype)
        elif value.ndim == 1:
            tensors[name] = np.where(np.arange(n_classes) == mark, MARK, 0).astype(value.dtype)
        else:
            tensors[name] = rng.normal(0, 1, (n_classes, *value.shape[1:])).astype(value.dtype)
    labels = tuple(f"class {index}" for index in range(n_classes))
    draft = draft.model_copy(update={"labels": labels})
    return store.put(task, tensors, draft, make_current=make_current)


def _layers(base: Artifact, forms: LayerForms) -> Iterator[tuple[str, LayerRecord]]:
    for name, shape in base.manifest.shapes().items():
        yield name, LayerRecord.of(shape, forms if shape.kind == "linear" else LayerForms())


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
