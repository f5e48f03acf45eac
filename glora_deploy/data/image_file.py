"""From the bytes of an image file to RGB pixels, the same for training, export and serving.

What becomes of each of Pillow's modes is drawn up in docs/data.md.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from .pixel_limit import MAX_PIXELS

_UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP")
"""What is accepted from bytes, which may come from strangers."""

_FILE_FORMATS = (*_UPLOAD_FORMATS, "BMP", "TIFF", "GIF", "JPEG2000", "AVIF")
"""What is accepted from a path, whatever its suffix says; of an animation, the first frame."""

SUFFIX_FORMATS = ("PPM", "TGA", "ICO", "PCX", "QOI", "SGI", "DIB")
"""Accepted from a path of their own suffix only: nearly any bytes would pass as some of these.

Left out of Pillow's list are formats that start other programs (EPS), are no single picture (PDF,
MPEG, HDF5, GRIB), or hold measurements without a fixed range (FITS).
"""

_ALPHA_MODES = frozenset(("LA", "PA", "RGBA", "RGBa"))
_EIGHT_BIT_MODES = _ALPHA_MODES | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}

_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as a backbone will see it, and what its file held."""

    image: Image.Image
    """RGB, upright."""
    sixteen_bit: bool
    """Whether its pixels were single numbers of 16 bits."""
    transparent: bool
    """Whether some pixel was not fully opaque."""


@cache
def image_suffixes() -> Mapping[str, str]:
    """Every suffix that is read as an image, lower-case with its dot, to Pillow's format."""
    Image.init()
    read = {*_FILE_FORMATS, *SUFFIX_FORMATS} & set(Image.OPEN)
    # A camera's multi-picture file is a JPEG followed by others; Pillow opens it as one.
    known = Image.registered_extensions() | {".mpo": "JPEG"}
    return {suffix: name for suffix, name in known.items() if name in read}


def load_image(source: bytes | Path) -> Image.Image:
    """Decode one image to RGB, upright as its EXIF orientation says.

    Transparency is dropped: a transparent pixel keeps the colour that it hides, as in
    ``Image.convert("RGB")``, which timm and torchvision use. 16-bit grey keeps its high byte.

    Args:
        source: The bytes of a JPEG, PNG or WEBP, or a path to one of these or of another format
            in ``image_suffixes``.

    Raises:
        DataError: If it cannot be read, is no image of these formats, is damaged, has more than
            ``MAX_PIXELS`` pixels, or holds numbers without a fixed range (32-bit integers,
            floating point).
    """
    return decode_image(source).image


def decode_image(source: bytes | Path) -> DecodedImage:
    """The image that ``load_image`` returns, and what its file held.

    Raises:
        DataError: As ``load_image``.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), _UPLOAD_FORMATS, where="image")
    try:
        with source.open("rb") as file:
            return _decode(file, _formats(source.suffix.lower()), where=str(source))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error


@cache
def _formats(suffix: str) -> tuple[str, ...]:
    """What the file of a path with this suffix may be; its own format is tried first."""
    known = set(image_suffixes().values())  # AVIF is not in every build of Pillow
    always = tuple(name for name in _FILE_FORMATS if name in known)
    own = image_suffixes().get(suffix)
    return always if own is None or own in always else (own, *always)


def _decode(file: IO[bytes], formats: tuple[str, ...], *, where: str) -> DecodedImage:
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{where}: an image must have at most {MAX_PIXELS:,} pixels, "
                    f"got {image.width} x {image.height}. Scale it down."
                )
            return to_rgb(image, where)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: must be a whole {', '.join(formats)} image, it is none of these"
        ) from error
    # On damaged files Pillow's decoders raise many types: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DataError(
            f"{where}: must be a whole {', '.join(formats)} image, but decoding it failed: {error}"
        ) from error


def to_rgb(image: Image.Image, where: str) -> DecodedImage:
    """An open image of Pillow's as its file is decoded: upright, in RGB by the range of its mode.

    Args:
        image: Of any mode; of an animation, the first frame. Not modified.
        where: Named in errors.

    Raises:
        DataError: If the mode has no range that is known.
    """
    image.load()
    upright = ImageOps.exif_transpose(image)
    # Pillow scales a PPM of more than 8 bits to 0..65535 and calls that mode I, like a few PNGs.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return DecodedImage(_high_byte(upright, image), sixteen_bit=True, transparent=False)
    if image.mode not in _EIGHT_BIT_MODES:
        raise DataError(f"{where}: {_refusal(image.mode)}")
    transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
    if transparent or image.mode == "P":
        # Straight to RGB, Pillow warns where the palette has transparent entries.
        upright = upright.convert("RGBA")
        transparent = int(np.asarray(upright)[..., 3].min()) < 255
    return DecodedImage(upright.convert("RGB"), sixteen_bit=False, transparent=transparent)


def _high_byte(upright: Image.Image, file: Image.Image) -> Image.Image:
    """The upper eight bits; Pillow's own conversion would clip every value above 255 to white."""
    tags: Mapping[int, object] = getattr(file, "tag_v2", {})
    # A TIFF can state 12 bits; in any other file 12 bits look like dark 16.
    shift = 4 if tags.get(_TIFF_BITS) == (12,) else 8
    grey: NDArray[np.uint8] = (np.asarray(upright) >> shift).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow does this for 8 bits only
    return Image.fromarray(grey).convert("RGB")


def _refusal(mode: str) -> str:
    what = {"I": "signed or 32-bit integers", "F": "floating-point numbers"}.get(mode)
    if what is None:
        return f"colours must be grey, RGB or CMYK, got {mode}. Convert it to RGB."
    return (
        f"pixels must have 8 or 16 bits, got {what} (mode {mode}), whose black and white no file "
        "states. Scale them to 0..255 or 0..65535 and save it with 8 or 16 bits."
    )
