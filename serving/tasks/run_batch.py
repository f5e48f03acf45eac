"""One batch computed: requests, the weights of their own version, answers."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import NonFiniteError

from ..errors import InputError, LoadError, TooLargeError
from .contract import Answer
from .scheduler import Batch
from .task_weights import Lease, MergedWeights, MixedWeights, TaskInMemory
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


def run_batch(batch: Batch[LiveVersion, Lease]) -> list[list[Answer | Exception]]:
    """Run a batch; for each request of each of its queues the answer, or why it has none.

    What an answer says of itself comes with the weights that computed it.

    Returns:
        For the batch's own queue, then for each of ``others``.

    Raises:
        LoadError: If the network gives logits of another shape than the version's labels have.
        Exception: Of the runtime.
    """
    parts = [batch, *batch.others]
    images = [np.concatenate([p.request.images for p in part.requests]) for part in parts]
    started_ns = time.monotonic_ns()
    logits = _logits(parts, images)
    compute_ns = time.monotonic_ns() - started_ns
    n_images = sum(map(len, images))
    return [
        _answers(part, own, compute_ns, n_images) for part, own in zip(parts, logits, strict=True)
    ]


def try_out(version: LiveVersion, weights: TaskInMemory) -> None:
    """Answer for one black image, to see that the version can.

    Raises:
        LoadError: If the network gives logits of another shape than the version's labels have.
        NonFiniteError: If they are not finite.
        Exception: Of the runtime.
    """
    image = np.zeros((1, *version.about.input_shape), np.float32)
    if isinstance(weights, MergedWeights):
        logits = weights.run(image)
    else:
        (logits,) = weights.network.run([(weights.terms, image)])
    _require_shape(version, logits, 1)
    if not np.isfinite(logits).all():
        raise NonFiniteError(f"{version.name}: logits must be finite, got NaN or infinity")


def _require_shape(version: LiveVersion, logits: NDArray[np.float32], n_images: int) -> None:
    shape = (n_images, len(version.about.labels))
    if logits.shape != shape:
        raise LoadError(f"{version.name}: logits must have shape {shape}, got {logits.shape}")


def _logits(
    parts: list[Batch[LiveVersion, Lease]], images: list[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Logits of each part; several are of tasks that share a network for batches of many."""
    values = [part.lease.value for part in parts]
    for weights in values:
        weights.n_batches += 1
    first = values[0]
    if isinstance(first, MergedWeights):
        (own,) = images
        return [first.run(np.ascontiguousarray(own))]
    terms = [weights.terms for weights in values if isinstance(weights, MixedWeights)]
    return first.network.run(list(zip(terms, images, strict=True)))


def _answers(
    part: Batch[LiveVersion, Lease],
    logits: NDArray[np.float32],
    compute_ns: int,
    batch_size: int,
) -> list[Answer | Exception]:
    version, weights = part.key, part.lease.value
    _require_shape(version, logits, part.n_images)
    hit = not part.merged
    version.counts.computed(part.n_images, compute_ns, hit=hit, merge_ns=part.swap_ns)
    answers: list[Answer | Exception] = []
    first = 0
    for pending in part.requests:
        own = logits[first : first + pending.n_images]
        first += pending.n_images
        if not np.isfinite(own).all():
            answers.append(
                NonFiniteError(f"{version.name}: logits must be finite, got NaN or infinity")
            )
            continue
        queue_ns = part.formed_ns - pending.admitted_ns
        answers.append(
            Answer(
                logits=own,
                task=weights.task,
                version=weights.version,
                delta_sha256=weights.delta_sha256,
                queue_ns=queue_ns,
                swap_ns=min(part.swap_ns, queue_ns),
                compute_ns=compute_ns,
                batch_size=batch_size,
            )
        )
    return answers
