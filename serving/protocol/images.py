"""Encoded images become what a backbone takes; a bomb is refused by its header."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.image_file import load_image
from glora_deploy.data.preprocess import Preprocessing, normalise, to_pixels
from glora_deploy.errors import DataError

from ..errors import InputError, TooLargeError
from .limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP")


def decode_images(
    encoded: Sequence[bytes], preprocessing: Preprocessing, limits: Limits
) -> NDArray[np.float32]:
    """Decode and preprocess images one after the other: one is held as pixels at a time.

    Args:
        encoded: JPEG, PNG or WEBP each; of an animation the first frame counts.
        preprocessing: Of the version that shall answer.
        limits: Bytes and pixels of each.

    Returns:
        ``(n, 3, h, w)``, C-contiguous.

    Raises:
        TooLargeError: If one is over a limit; none of it is decoded then.
        InputError: If one is no such image, or damaged. Says which, from 0.
    """
    height, width = preprocessing.size
    pixels = np.empty((len(encoded), height, width, 3), np.uint8)
    for index, data in enumerate(encoded):
        where = f"image {index}" if len(encoded) > 1 else "image"
        _require_small(data, limits, where)
        try:
            pixels[index] = to_pixels(load_image(data), preprocessing)
        except DataError as error:
            raise InputError(str(error).replace("image", where, 1)) from error
    return normalise(pixels, preprocessing)


def _require_small(data: bytes, limits: Limits, where: str) -> None:
    if len(data) > limits.max_image_bytes:
        raise TooLargeError(
            f"{where}: must have at most {limits.max_image_bytes:,} bytes, got {len(data):,}"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(
            f"{where}: must have at most {limits.max_pixels:,} pixels, its header says far more. "
            "Scale it down."
        ) from error
    # Pillow's readers raise many types on damaged headers.
    except Exception as error:
        raise InputError(f"{where}: must be a whole {', '.join(FORMATS)} image") from error
    if width * height > limits.max_pixels:
        raise TooLargeError(
            f"{where}: must have at most {limits.max_pixels:,} pixels, got {width} x {height}. "
            "Scale it down."
        )
