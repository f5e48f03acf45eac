"""One batch computed: the requests of one version, the weights of that version, the answers."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import NonFiniteError

from ..errors import InputError, LoadError, TooLargeError
from .contract import Answer
from .scheduler import Batch
from .task_weights import Lease
from .versions import LiveVersion


def require_images(
    images: NDArray[np.float32], shape: tuple[int, int, int], max_batch: int
) -> None:
    """Check the images of a request.

    Raises:
        InputError: If they are not float32 ``(n, *shape)`` with n of at least 1.
        TooLargeError: If there are more than ``max_batch``.
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise InputError(
            f"images must be float32 of shape (n, {wanted}), got {images.dtype} {images.shape}"
        )
    if not len(images):
        raise InputError("images must be at least 1, got 0")
    if len(images) > max_batch:
        raise TooLargeError(f"images must be at most {max_batch} at once, got {len(images)}")


def run_batch(batch: Batch[LiveVersion, Lease]) -> list[Answer | Exception]:
    """Run a batch; for each of its requests the answer, or why it has none.

    What an answer says of itself comes with the weights that computed it.

    Raises:
        LoadError: If the network gives logits of another shape than the version's labels have.
        Exception: Of the runtime.
    """
    version, weights = batch.key, batch.lease.value
    images = [pending.request.images for pending in batch.requests]
    joined = np.ascontiguousarray(np.concatenate(images))
    started_ns = time.monotonic_ns()
    logits = weights.run(joined)
    compute_ns = time.monotonic_ns() - started_ns
    shape = (len(joined), len(version.about.labels))
    if logits.shape != shape:
        raise LoadError(f"{version.name}: logits must have shape {shape}, got {logits.shape}")
    hit = not batch.merged
    version.counts.computed(len(joined), compute_ns, hit=hit, merge_ns=batch.swap_ns)
    answers: list[Answer | Exception] = []
    first = 0
    for pending in batch.requests:
        own = logits[first : first + pending.n_images]
        first += pending.n_images
        if not np.isfinite(own).all():
            answers.append(
                NonFiniteError(f"{version.name}: logits must be finite, got NaN or infinity")
            )
            continue
        queue_ns = batch.formed_ns - pending.admitted_ns
        answers.append(
            Answer(
                logits=own,
                task=weights.task,
                version=weights.version,
                delta_sha256=weights.delta_sha256,
                queue_ns=queue_ns,
                swap_ns=min(batch.swap_ns, queue_ns),
                compute_ns=compute_ns,
                batch_size=len(joined),
            )
        )
    return answers
