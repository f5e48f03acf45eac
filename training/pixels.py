"""One split of a task as network inputs: resized once, kept as bytes, normalised per batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glora_deploy.data.load import ImageSet
from glora_deploy.data.preprocess import Preprocessing, to_pixels

CACHE_BYTES = 2 * 2**30
"""A split of more bytes than this is read from its source again for every batch."""

READ_AT_ONCE = 256


class Pixels:
    """The images of one split, ready to be batched.

    Args:
        images: The split. Every image is read once here if they fit the cache together,
            otherwise whenever a batch needs it.
        preprocessing: The backbone's.
        device: Where batches and the cache lie.
        cache_bytes: Size of the cache; 0 reads every time.
        report: Called with how many images have been read into the cache.

    Raises:
        DataError: If an image cannot be read.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        cache_bytes: int = CACHE_BYTES,
        report: Callable[[int], None] = lambda n_read: None,
    ) -> None:
        height, width = preprocessing.size
        self._images = images
        self._preprocessing = preprocessing
        self._device = device
        self._mean = torch.tensor(preprocessing.mean, device=device)[:, None, None]
        self._std = torch.tensor(preprocessing.std, device=device)[:, None, None]
        self.labels = torch.from_numpy(images.labels).to(device)
        self._cache: Tensor | None = None
        if len(images) * height * width * 3 <= cache_bytes:
            cache = np.empty((len(images), height, width, 3), np.uint8)
            for some in _slices(len(images), READ_AT_ONCE):
                cache[some.start : some.stop] = self._read(some)
                report(some.stop)
            self._cache = torch.from_numpy(cache).to(device)

    def __len__(self) -> int:
        return len(self._images)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """The network's input for these images: ``(n, 3, h, w)``, float32.

        The same bits as ``preprocess.normalise``, computed on the device.
        """
        if self._cache is not None:
            pixels = self._cache[torch.tensor(indices, device=self._device)]
        else:
            pixels = torch.from_numpy(self._read(indices)).to(self._device)
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x.div_(255).sub_(self._mean).div_(self._std)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of all images in order, ``size`` at a time."""
        for some in _slices(len(self), size):
            yield self.inputs(some), self.labels[some.start : some.stop]

    def _read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        def pixels(index: int) -> NDArray[np.uint8]:
            return to_pixels(self._images.image(index), self._preprocessing)

        with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes without the GIL
            return np.stack(list(pool.map(pixels, indices)))


def _slices(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))
