from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from glora_deploy.data.load import ImageSet
from glora_deploy.data.preprocess import Preprocessing, preprocess_batch
from glora_deploy.errors import DataError
from glora_deploy.training.pixels import Pixels
from tasks import make_images

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(
    size=(10, 14),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    crop_pct=0.875,
    crop_mode="center",
)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_inputs_have_the_bits_of_the_one_preprocessing(cache_bytes: int) -> None:
    images = make_images(7, seed=0)
    pixels = Pixels(images, PREPROCESSING, CPU, cache_bytes=cache_bytes)
    expected = preprocess_batch([images.image(i) for i in range(7)], PREPROCESSING)
    found = pixels.inputs([4, 0, 6])
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected[[4, 0, 6]])


def test_batches_hold_every_image_once_in_order() -> None:
    images = make_images(7, seed=0)
    pixels = Pixels(images, PREPROCESSING, CPU)
    batches = list(pixels.batches(3))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels.tolist()
    assert torch.equal(torch.cat([x for x, _ in batches]), pixels.inputs(range(7)))


def test_the_cache_reads_each_image_once_and_without_it_each_time() -> None:
    images = make_images(5, seed=0)
    read: list[int] = []

    def spy(index: int) -> Image.Image:
        read.append(index)
        return images.image(index)

    watched = ImageSet(images.labels, images.ids, spy)
    cached = Pixels(watched, PREPROCESSING, CPU)
    for _ in range(2):
        cached.inputs([0, 1])
    assert sorted(read) == [0, 1, 2, 3, 4]
    read.clear()
    uncached = Pixels(watched, PREPROCESSING, CPU, cache_bytes=5 * 10 * 14 * 3 - 1)
    assert read == []
    for _ in range(2):
        uncached.inputs([0, 1])
    assert sorted(read) == [0, 0, 1, 1]


def test_reading_reports_its_progress() -> None:
    seen: list[int] = []
    Pixels(make_images(300, seed=0), PREPROCESSING, CPU, report=seen.append)
    assert seen == [256, 300]


def test_an_image_that_cannot_be_read_is_named() -> None:
    def damaged(index: int) -> Image.Image:
        raise DataError(f"images/{index}.jpg: cannot be read")

    images = ImageSet(np.zeros(2, np.int64), ("0", "1"), damaged)
    with pytest.raises(DataError, match=r"images/0\.jpg"):
        Pixels(images, PREPROCESSING, CPU)
