"""What a caller may give as an image, decoded as training decoded its files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.image_file import (
    load_image,
    to_rgb,  # an open image must answer as its file does
)
from glora_deploy.data.pixel_limit import MAX_PIXELS
from glora_deploy.errors import DataError

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, the bytes of a JPEG, PNG or WEBP, an image of Pillow's, or RGB pixels ``(h, w, 3)``."""


def to_image(source: ImageInput) -> Image.Image:
    """The image in RGB, upright as its EXIF orientation says; the source is not modified.

    A path, its bytes and the image that ``PIL.Image.open`` makes of it give the same pixels.

    Raises:
        DataError: As ``data.image_file.load_image``.
        TypeError: If it is none of these.
        ValueError: If an array is not uint8 ``(h, w, 3)``, or has no pixel or too many.
    """
    match source:
        case bytes():
            return load_image(source)
        case str() | Path():
            return load_image(Path(source))
        case Image.Image():
            return _of_pillow(source)
        case np.ndarray():
            return _of_array(source)
    raise TypeError(
        "an image must be a path, bytes, a PIL.Image.Image or a uint8 array (h, w, 3), "
        f"got {type(source).__name__}"
    )


def _of_pillow(image: Image.Image) -> Image.Image:
    _require_size(image.height, image.width)
    try:
        return to_rgb(image, "image").image
    except DataError:
        raise
    # It may not be decoded yet, and on damaged files Pillow's decoders raise many types.
    except Exception as error:
        raise DataError(f"image: must be whole, but decoding it failed: {error}") from error


def _of_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"an array must be uint8 (h, w, 3), red green blue, got {pixels.dtype} {pixels.shape}"
        )
    _require_size(*pixels.shape[:2])
    return Image.fromarray(pixels)


def _require_size(height: int, width: int) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise ValueError(
            f"an image must have 1 to {MAX_PIXELS:,} pixels, got {width} x {height}. "
            "Crop it or scale it down."
        )
