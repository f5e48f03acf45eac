"""What parity feeds the stages: the task's own test images, or noise, and extremes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.check import skipped_images
from glora_deploy.data.image_set import ImageSet, TaskData
from glora_deploy.data.load import load_task
from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import DataError, MissingDependencyError
from glora_deploy.precision import Precision
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.redact import data_kind

log = logging.getLogger(__name__)

WILD_SCALES: dict[Precision, tuple[float, ...]] = {
    "fp32": (1e-6, 1e-3, 1e2, 1e4),
    # 1e4 times unit noise leaves the range of fp16 itself, so it says nothing about the network.
    "fp16": (1e-6, 1e-3, 1e2),
    "bf16": (1e-6, 1e-3, 1e2, 1e4),
}
"""Factors on noise: far outside what an image can hold, yet the stages must still agree."""


@dataclass(frozen=True, slots=True)
class ParityInputs:
    """Three sets of inputs, each ``(n, 3, h, w)`` float32."""

    ordinary: NDArray[Any]
    """Test images of the task, or seeded noise."""
    flat: NDArray[Any]
    """Images of one colour: what the normalised range can hold at its ends, and zeros."""
    wild: NDArray[Any]
    """Noise at scales no image reaches."""
    data: str
    """Where ``ordinary`` came from, in words."""
    photos: ImageSet | None = None
    """The images of ``ordinary`` before preprocessing; None for noise."""


def parity_inputs(
    manifest: Manifest, precision: Precision, n_images: int, *, seed: int = 0
) -> ParityInputs:
    """Gather the inputs for one task.

    Args:
        manifest: Names the data and the preprocessing.
        precision: Of the stages; its range bounds the wild inputs.
        n_images: Ordinary images wanted.
        seed: Of the noise, and of which test images are taken.
    """
    p = Preprocessing(**manifest.preprocessing.model_dump())
    shape = (3, *p.size)
    rng = np.random.default_rng(seed)
    photos, data = _task_images(manifest, n_images, rng)
    if photos is not None:
        images = preprocess_batch(map(photos.image, range(len(photos))), p)
    else:
        images = rng.standard_normal((n_images, *shape), dtype=np.float32)
    mean, std = np.array(p.mean, np.float32), np.array(p.std, np.float32)
    colours = np.stack([(level - mean) / std for level in (0.0, 0.5, 1.0)])
    flat = np.broadcast_to(colours[:, :, None, None], (3, *shape))
    flat = np.concatenate([flat, np.zeros((1, *shape), np.float32)])
    scales = np.array(WILD_SCALES[precision], np.float32)
    wild = rng.standard_normal((len(scales), *shape), dtype=np.float32)
    wild *= scales[:, None, None, None]
    return ParityInputs(images, np.ascontiguousarray(flat), wild, data, photos)


def task_data(manifest: Manifest) -> tuple[TaskData | None, str]:
    """The data a delta was trained on, if they are at hand; else None and why not.

    The words name no place: they are stored in what is given away. Why data with a place are not
    there is logged.
    """
    training = manifest.training
    if training.data is None:
        return None, "the manifest names no data"
    words = data_words(training.data)
    if training.data not in BUILT_IN_TASKS and ":" not in training.data:
        return None, f"the manifest does not say where {words} lies"  # pulled from elsewhere
    try:
        skipped = skipped_images(training.settings)
        task = load_task(training.data, seed=training.seed or 0, skipped=skipped)
    except (DataError, MissingDependencyError, OSError) as error:
        if training.data in BUILT_IN_TASKS:
            return None, f"{words} is not at hand ({error})"
        log.warning("%s: its data are not at hand (%s)", manifest.task, error)
        return None, f"{words} is not at hand"
    if training.splits_sha256 not in (None, task.splits_sha256):
        return None, f"{words} is not the data the delta was trained on"
    return task, words


def data_words(spec: str) -> str:
    """A data spec in words that name no place.

    >>> data_words("digits"), data_words("folder:/home/ann/acme")
    ('digits', 'its own data (folder)')
    """
    kind = data_kind(spec)
    return spec if spec in BUILT_IN_TASKS else f"its own data ({kind})"


def _task_images(
    manifest: Manifest, n_images: int, rng: np.random.Generator
) -> tuple[ImageSet | None, str]:
    task, words = task_data(manifest)
    if task is None:
        return None, f"seeded noise: {words}"
    chosen = rng.permutation(len(task.test))[:n_images]
    return task.test.select(np.sort(chosen)), f"{len(chosen)} test images of {words}"
