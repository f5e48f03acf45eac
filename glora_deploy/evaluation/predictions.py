"""A network's answers to labelled images, computed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.image_set import ImageSet
from ..data.preprocess import Preprocessing, normalise, to_pixels
from ..errors import DataError, NonFiniteError
from ..precision import Precision
from ..wording import count_of, printable
from .metrics import softmax

BATCH_SIZE = 32


class Classifier(Protocol):
    """What can be evaluated: ``glora_deploy.serving.Predictor`` is one, ``DeltaNetwork`` too."""

    @property
    def task(self) -> str:
        """Name of its task."""

    @property
    def version(self) -> str:
        """Which version of the task it is."""

    @property
    def delta_sha256(self) -> str:
        """Of the adapter.safetensors that it was made from."""

    @property
    def precision(self) -> Precision:
        """Of its weights."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every class, in the order of its outputs."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of an image before it sees it."""

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, n_classes)`` of preprocessed images ``(n, 3, h, w)``."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Predictions:
    """Logits for every image that could be read."""

    labels: tuple[str, ...]
    """Class of each column of the logits."""
    images: ImageSet
    """The images, without those that were skipped; their labels count the data's own classes."""
    targets: NDArray[np.int64]
    """Column of each image's class, ``(n,)``."""
    logits: NDArray[np.float32]
    """``(n, n_classes)``."""
    skipped: tuple[str, ...] = ()
    """Ids of images that could not be read."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Column of the largest logit, ``(n,)``; of equals the first."""
        found: NDArray[np.int64] = self.logits.argmax(1)
        return found

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that is the image's class, ``(n,)``."""
        return np.equal(self.predicted, self.targets)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, ``(n, n_classes)``."""
        return softmax(self.logits)


def predict(
    network: Classifier,
    images: ImageSet,
    targets: NDArray[np.int64],
    *,
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Let a network answer for images; two batches of them are in memory at most.

    Args:
        network: What answers.
        images: At least one. The next batch is read while one is computed.
        targets: Each image's class as the network counts them, ``(n,)``.
        batch_size: Images computed at once.
        skip_unreadable: Leave images out that cannot be read.
        report: Told how many images of how many are done.

    Raises:
        DataError: If an image cannot be read, or none can; names it.
        NonFiniteError: If the network answers with NaN or infinity; names an image.
        ValueError: If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    n, n_done = len(images), 0
    kept: list[int] = []
    found: list[NDArray[np.float32]] = []
    for indices, pixels in _batches(images, network.preprocessing, batch_size):
        for each in pixels:
            if isinstance(each, DataError) and not skip_unreadable:
                raise DataError(
                    f"{str(each).rstrip('.')}. Mend or remove it, or leave it out with "
                    "--skip-unreadable."
                ) from each
        good = [each for each in pixels if not isinstance(each, DataError)]
        places = [i for i, p in zip(indices, pixels, strict=True) if not isinstance(p, DataError)]
        if good:
            logits = network.logits(normalise(np.stack(good), network.preprocessing))
            _require_finite(logits, [images.ids[i] for i in places], network)
            found.append(logits)
            kept += places
        n_done += len(indices)
        report(n_done, n)
    if not found:
        raise DataError(f"there must be an image that can be read, got {count_of(n, 'image')}")
    whole = len(kept) == n
    left = set(kept)
    return Predictions(
        labels=network.labels,
        images=images if whole else images.select(kept),
        targets=targets[kept],
        logits=np.concatenate(found),
        skipped=() if whole else tuple(images.ids[i] for i in range(n) if i not in left),
    )


_Read = NDArray[np.uint8] | DataError


def _batches(
    images: ImageSet, preprocessing: Preprocessing, size: int
) -> Iterator[tuple[range, list[_Read]]]:
    """Indices and pixels batch by batch, the next one being read while one is used."""

    def read(index: int) -> _Read:
        try:
            return to_pixels(images.image(index), preprocessing)
        except DataError as error:
            return error

    some = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes without the GIL

        def begin(indices: range) -> list[Future[_Read]]:
            return [pool.submit(read, index) for index in indices]

        try:
            ahead = begin(some[0]) if some else []
            for number, indices in enumerate(some):
                now, ahead = ahead, begin(some[number + 1]) if number + 1 < len(some) else []
                yield indices, [each.result() for each in now]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _require_finite(logits: NDArray[np.float32], ids: Sequence[str], network: Classifier) -> None:
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        first = printable(ids[int(finite.argmin())])
        raise NonFiniteError(
            f"{network.task}/{network.version}: logits must be finite, got NaN or infinity for "
            f"{first}. Take fp32 weights."
        )
