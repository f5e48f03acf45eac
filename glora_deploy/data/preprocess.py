"""From image bytes to the array a backbone takes: one code for training, parity and serving.

The steps are those of timm's evaluation transform (``timm/data/transforms_factory.py``,
``transforms_imagenet_eval``), to the bit, without importing torch: resize and crop with Pillow,
divide by 255, subtract the mean, divide by the standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .image_file import load_image as load_image

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash", "border"]
Triple: TypeAlias = tuple[float, float, float]


MAX_CROP_PCT = 2
"""The largest of timm's is 1.15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a backbone's input: the fields of timm's data config."""

    size: tuple[int, int]
    """Height and width of the input, in pixels."""
    mean: Triple
    """Subtracted per channel, red green blue, on the scale 0 to 1."""
    std: Triple
    """Divided by per channel, on the scale 0 to 1."""
    interpolation: Interpolation
    """Pillow's resampling filter."""
    crop_pct: float
    """Side of the crop as a share of the resized image, above 0 and at most ``MAX_CROP_PCT``;
    above 1 the whole image is kept and a border added, as some of timm's VOLO models do."""
    crop_mode: CropMode
    """``center`` keeps the aspect ratio and cuts the longer side, ``squash`` does not keep it,
    ``border`` keeps it and pads the shorter side with the mean colour."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width) in pixels, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must be 3 numbers and std positive, got {self.mean}, {self.std}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be one of {get_args(Interpolation)}, "
                f"got {self.interpolation!r}"
            )
        if not 0 < self.crop_pct <= MAX_CROP_PCT:
            raise ValueError(
                f"crop_pct must be above 0 and at most {MAX_CROP_PCT}, got {self.crop_pct}"
            )
        if min(self.size) < self.crop_pct:
            raise ValueError(
                f"size must leave a pixel when divided by crop_pct={self.crop_pct}, got {self.size}"
            )
        if self.crop_mode not in get_args(CropMode):
            raise ValueError(
                f"crop_mode must be one of {get_args(CropMode)}, got {self.crop_mode!r}"
            )

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> Preprocessing:
        """Take over what ``timm.data.resolve_model_data_config(model)`` returns.

        Raises:
            ValueError: If the model does not take 3 channels, or a value is out of range.
        """
        channels, height, width = data_config["input_size"]
        if channels != 3:
            raise ValueError(f"input_size must be (3, height, width), got {channels} channels")
        return cls(
            size=(height, width),
            mean=_triple(data_config["mean"]),
            std=_triple(data_config["std"]),
            interpolation=data_config["interpolation"],
            crop_pct=float(data_config["crop_pct"]),
            crop_mode=data_config["crop_mode"],
        )


def _triple(values: Iterable[float]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop: everything before the numbers become floats, ready to be cached.

    Returns:
        Pixels ``(h, w, 3)``, uint8.
    """
    p = preprocessing
    image = image.convert("RGB")
    scaled = (math.floor(p.size[0] / p.crop_pct), math.floor(p.size[1] / p.crop_pct))
    height, width = _resized_size((image.height, image.width), scaled, p.crop_mode)
    image = image.resize((width, height), Image.Resampling[p.interpolation.upper()])
    # Only "border" pads with the mean; a crop larger than the image gets a black border.
    red, green, blue = (round(255 * value) if p.crop_mode == "border" else 0 for value in p.mean)
    return np.array(_center_crop(image, p.size, fill=(red, green, blue)))


def _resized_size(
    size: tuple[int, int], target: tuple[int, int], crop_mode: CropMode
) -> tuple[int, int]:
    """Height and width to resize to; the three branches round as timm and torchvision do."""
    height, width = size
    if crop_mode == "squash":
        return target
    if crop_mode == "center" and target[0] == target[1]:
        if width <= height:
            return int(target[0] * height / width), target[0]
        return target[0], int(target[0] * width / height)
    ratios = height / target[0], width / target[1]
    ratio = max(ratios) if crop_mode == "border" else min(ratios)
    # A very long image keeps a line of pixels where timm would fail.
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def _center_crop(
    image: Image.Image, size: tuple[int, int], fill: tuple[int, int, int]
) -> Image.Image:
    """Cut out the middle; a side that is too short is filled up.

    ``border`` makes such sides, and so does a ``crop_pct`` above 1.
    """
    height, width = size
    missing_h, missing_w = max(height - image.height, 0), max(width - image.width, 0)
    if missing_h or missing_w:
        border = (missing_w // 2, missing_h // 2, (missing_w + 1) // 2, (missing_h + 1) // 2)
        image = ImageOps.expand(image, border, fill)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn pixels into a backbone's input: ``(pixels / 255 - mean) / std``, channels first.

    Args:
        pixels: ``(h, w, 3)`` or ``(n, h, w, 3)``, uint8. Not modified.
        preprocessing: Only its mean and std are read.

    Returns:
        ``(3, h, w)`` or ``(n, 3, h, w)``, float32, contiguous.
    """
    x = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    x /= np.float32(255)
    x -= np.array(preprocessing.mean, np.float32)[:, None, None]
    x /= np.array(preprocessing.std, np.float32)[:, None, None]
    return x


def preprocess_batch(
    images: Iterable[Image.Image], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Images of any sizes as one input batch: ``(n, 3, h, w)``, float32; n may be 0."""
    height, width = preprocessing.size
    pixels = [to_pixels(image, preprocessing) for image in images]
    return normalise(np.array(pixels, np.uint8).reshape(-1, height, width, 3), preprocessing)
