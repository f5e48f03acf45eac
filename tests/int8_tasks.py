"""A float ONNX model in a folder, and a task for it, to quantise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factories import make_draft, make_store, make_tensors
from glora_deploy.data.image_set import ArrayImages, ImageSet, TaskData
from glora_deploy.data.preprocess import Preprocessing, normalise
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.write import describe, write_onnx
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.manifest_fields import PreprocessingRecord
from onnx_networks import input_size, make_network, make_skeleton, write_weights

LABELS = ("ant", "bee", "cat", "dog", "elk")


def make_manifest(root: Path, kind: str = "vit") -> Manifest:
    _, height, width = input_size(kind)
    preprocessing = PreprocessingRecord(
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        size=(height, width),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
    )
    backbone = make_draft().backbone.model_copy(update={"input_size": (3, height, width)})
    draft = make_draft(labels=LABELS, preprocessing=preprocessing, backbone=backbone)
    return make_store(root / "store").put("pets", make_tensors(draft), draft).manifest


def make_folder(root: Path, kind: str = "vit", *, single_file: bool = False) -> Path:
    """An export folder with the float32 ONNX model of a random network."""
    folder = root / "fp32"
    folder.mkdir()
    write_weights(make_network(kind), folder)
    metadata = describe(
        task="pets", version="v1", labels=LABELS, precision="fp32", preprocessing={"size": [32]}
    )
    write_onnx(folder, make_skeleton(kind), metadata, single_file=single_file)
    return folder


def make_images_of_noise(n: int, seed: int, *, side: int = 32) -> NDArray[np.uint8]:
    """Blurred noise, ``(n, side, side, 3)``: neighbouring pixels alike, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, side // 4, side // 4, 3), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def make_task(
    folder: Path, manifest: Manifest, *, n: int = 20, val: NDArray[np.uint8] | None = None
) -> TaskData:
    """Images that the float model gets right, all but one in five of the test images."""
    preprocessing = Preprocessing(**manifest.preprocessing.model_dump())
    session = OnnxSession(folder / "model.onnx", threads=1)

    def split(name: str, pixels: NDArray[np.uint8]) -> ImageSet:
        labels = session.logits(normalise(pixels, preprocessing)).argmax(1).astype(np.int64)
        labels[::5] = (labels[::5] + 1) % len(LABELS)
        ids = tuple(f"{name}/{i}" for i in range(len(pixels)))
        return ImageSet(labels, ids, ArrayImages(pixels))

    return TaskData(
        name="pets",
        spec="folder:pets",
        seed=0,
        classes=LABELS,
        train=split("train", make_images_of_noise(5, 1)),
        val=split("val", make_images_of_noise(12, 2) if val is None else val),
        test=split("test", make_images_of_noise(n, 3)),
    )


def make_preprocessed(folder: Path, manifest: Manifest, *, n: int = 20) -> NDArray[np.float32]:
    """The test images of :func:`make_task` as the model takes them."""
    test = make_task(folder, manifest, n=n).test
    images = np.stack([np.asarray(test.image(i)) for i in range(n)])
    return normalise(images, Preprocessing(**manifest.preprocessing.model_dump()))
