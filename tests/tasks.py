"""A task of plainly coloured images: small, and learned in a few steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glora_deploy.backbones.load import Backbone, Outline, load_backbone, outline
from glora_deploy.data.image_set import ArrayImages
from glora_deploy.data.load import ImageSet, TaskData
from glora_deploy.training import pipeline

COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], np.float64)


def make_images(n: int, *, seed: int, name: str = "image", size: int = 12) -> ImageSet:
    """Noisy images of three colours, in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(COLOURS)
    noise = rng.normal(0, 30, (n, size, size, 3))
    pixels = np.clip(COLOURS[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
    return ImageSet(labels, tuple(f"{name}/{i}" for i in range(n)), ArrayImages(pixels))


def make_task(n_train: int = 36, n_val: int = 18, n_test: int = 21) -> TaskData:
    """Three splits of coloured images; the numbers of images are all different."""
    return TaskData(
        name="colours",
        spec="colours",
        seed=0,
        classes=("red", "green", "blue"),
        train=make_images(n_train, seed=0, name="train"),
        val=make_images(n_val, seed=1, name="val"),
        test=make_images(n_test, seed=2, name="test"),
    )


def use_small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every backbone that a training asks for be an untrained ViT of narrow blocks.

    ``demo-vit`` gets two, any other name one. The input size that is asked for is kept, and so is
    the seed of ``random:SEED``.
    """
    vit = "vit_tiny_patch16_224"

    def model_args(name: str) -> dict[str, Any]:
        depth = 2 if name == "demo-vit" else 1
        return {"patch_size": 8, "embed_dim": 48, "depth": depth, "num_heads": 3}

    def small_outline(name: str, *, input_size: Any = None) -> Outline:
        return outline(vit, input_size=input_size or 32, model_args=model_args(name))

    def small_backbone(name: str, *, checkpoint: Any = None, input_size: Any = None) -> Backbone:
        return load_backbone(
            vit,
            checkpoint=checkpoint or "random:0",
            input_size=input_size or 32,
            model_args=model_args(name),
        )

    monkeypatch.setattr(pipeline, "outline", small_outline)
    monkeypatch.setattr(pipeline, "load_backbone", small_backbone)
