from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from glora_deploy.data.image_file import SUFFIX_FORMATS, decode_image, image_suffixes, load_image
from glora_deploy.errors import DataError

RAMP = np.arange(256, dtype=np.uint16).reshape(4, 64)
"""Every grey level once, in a shape that shows a transpose."""


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def save_array(pixels: NDArray[Any], path: Path, **options: Any) -> Path:
    return save(Image.fromarray(pixels), path, **options)


def grey(path: Path) -> NDArray[np.uint8]:
    pixels = np.asarray(load_image(path))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 64, 3)
    assert np.array_equal(pixels, pixels[..., :1].repeat(3, axis=2))
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2"])
def test_sixteen_bits_keep_the_high_eight(tmp_path: Path, suffix: str) -> None:
    options = {"irreversible": False} if suffix == ".jp2" else {}
    path = save_array(RAMP * 256 + 255 - RAMP, tmp_path / f"a{suffix}", **options)
    np.testing.assert_array_equal(grey(path), RAMP)
    assert decode_image(path).sixteen_bit


def make_tiff(pixels: bytes, *, bits: int, order: str, white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF of 64 x 4 pixels, written from its specification."""
    tags = [
        (256, 4, 64), (257, 4, 4), (258, 3, bits), (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 4, 4),
        (279, 4, len(pixels)),
    ]  # fmt: skip
    mark = {"<": b"II", ">": b"MM"}[order]
    head = mark + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in tags
    )
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiffs_of_both_byte_orders_are_the_same(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.tif"
    pixels = (RAMP * 257).astype(f"{order}u2").tobytes()
    path.write_bytes(make_tiff(pixels, bits=16, order=order))
    np.testing.assert_array_equal(grey(path), RAMP)


def test_sixteen_bits_with_white_as_zero_are_turned_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = (RAMP * 257).astype("<u2").tobytes()
    path.write_bytes(make_tiff(pixels, bits=16, order="<", white_is_zero=True))
    np.testing.assert_array_equal(grey(path), 255 - RAMP)


def test_a_tiff_that_states_twelve_bits_fills_the_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = (RAMP * 16 + 7).reshape(-1, 2).astype(np.uint32)
    packed = values[:, 0] << 12 | values[:, 1]  # two pixels in three bytes
    pixels = b"".join(int(pair).to_bytes(3, "big") for pair in packed)
    path.write_bytes(make_tiff(pixels, bits=12, order="<"))
    np.testing.assert_array_equal(grey(path), RAMP)


@pytest.mark.parametrize("maximum", [255, 1023, 4095, 65535])
def test_a_pgm_is_scaled_by_the_maximum_it_states(tmp_path: Path, maximum: int) -> None:
    values = np.round(RAMP / 255 * maximum).astype(">u2" if maximum > 255 else "u1")
    path = tmp_path / "a.pgm"
    path.write_bytes(f"P5 64 4 {maximum}\n".encode() + values.tobytes())
    assert np.abs(grey(path).astype(int) - RAMP).max() <= (maximum > 255)  # rounded twice
    assert grey(path).max() == 255


@pytest.mark.parametrize("scale", [1, 257])
def test_32_bit_integers_are_refused_by_name(tmp_path: Path, scale: int) -> None:
    path = save_array(RAMP.astype(np.int32) * scale, tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"^{path}: pixels .*got signed or 32-bit.*mode I.*0..65"):
        load_image(path)


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_floating_point_is_refused_by_name(tmp_path: Path, scale: float) -> None:
    path = save_array((RAMP * scale).astype(np.float32), tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"^{path}: pixels .*got floating-point numbers \(mode F"):
        load_image(path)


def test_signed_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    tiff = make_tiff((RAMP * 100).astype("<i2").tobytes(), bits=16, order="<")
    count = struct.unpack_from("<H", tiff, 8 + 512)[0]
    signed = struct.pack("<HHIHH", 339, 3, 1, 2, 0)  # SampleFormat: two's complement
    path = tmp_path / "a.tif"
    entries = tiff[8 + 514 : -4] + signed
    path.write_bytes(tiff[: 8 + 512] + struct.pack("<H", count + 1) + entries + bytes(4))
    with pytest.raises(DataError, match=r"got signed or 32-bit integers"):
        load_image(path)


def test_lab_is_refused_by_name(tmp_path: Path) -> None:
    path = save(Image.new("LAB", (3, 2)), tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"colours must be grey, RGB or CMYK, got LAB"):
        load_image(path)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = (RAMP % 3 == 0) & (RAMP < 200)
    for suffix in (".png", ".tif", ".bmp", ".pbm"):
        path = save_array(bits, tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(grey(path), bits * np.uint8(255))


def test_cmyk_becomes_the_colours_it_prints(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (3, 2), (255, 0, 0, 0)), tmp_path / "a.tif")
    assert load_image(path).getpixel((0, 0)) == (0, 255, 255)


COLOURS = np.array([[[200, 100, 50, 0], [10, 20, 30, 128]], [[5, 6, 7, 255]] * 2], np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tga", ".ico"])
def test_transparency_is_dropped_and_the_colour_below_kept(tmp_path: Path, suffix: str) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    pixels = COLOURS if suffix != ".ico" else np.tile(COLOURS, (8, 8, 1))
    path = save_array(pixels, tmp_path / f"a{suffix}", **options)
    decoded = decode_image(path)
    np.testing.assert_array_equal(np.asarray(decoded.image), pixels[..., :3])
    assert decoded.transparent


def test_grey_with_transparency_keeps_its_grey(tmp_path: Path) -> None:
    path = save_array(COLOURS[..., [0, 3]], tmp_path / "a.png")
    decoded = decode_image(path)
    np.testing.assert_array_equal(np.asarray(decoded.image)[..., 1], COLOURS[..., 0])
    assert decoded.transparent


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_keeps_its_value(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (2, 1), (51, 51, 51)).convert(mode)
    key = image.getpixel((0, 0))
    path = save(image, tmp_path / "a.png", transparency=key)
    decoded = decode_image(path)
    np.testing.assert_array_equal(np.asarray(decoded.image), [[[51, 51, 51]] * 2])
    assert decoded.transparent


def test_a_wholly_opaque_image_is_not_transparent(tmp_path: Path) -> None:
    path = save(Image.new("RGBA", (2, 1), (9, 8, 7, 255)), tmp_path / "a.png")
    assert not decode_image(path).transparent


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_of_an_animation_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert load_image(path).getpixel((1, 1)) == (255, 0, 0)


def test_the_orientation_turns_sixteen_bits_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_array(RAMP * 257, tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(load_image(path))[..., 0], np.rot90(RAMP, -1).astype(np.uint8)
    )


before_13 = int(PIL.__version__.partition(".")[0]) < 13


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
        pytest.param(
            "YCbCr", marks=pytest.mark.skipif(before_13, reason="Pillow 13 reads YCbCr TIFF")
        ),
    ],
)
def test_eight_bits_are_read_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    path = save(image, tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)


def test_a_suffix_that_lies_does_no_harm(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    for lying, true in ((".jpg", "PNG"), (".tga", "PNG"), (".png", "TIFF"), (".ppm", "BMP")):
        path = save(image, tmp_path / f"a{lying}", format=true)
        assert load_image(path).getpixel((0, 0)) == (1, 2, 3)


def test_formats_that_anything_passes_for_need_their_own_suffix(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (2, 2)), tmp_path / "a.tga")
    with pytest.raises(DataError, match=r"must be a whole .* image, it is none of these"):
        load_image(path.rename(tmp_path / "a.png"))


def test_no_suffix_starts_a_program_or_holds_more_than_a_picture() -> None:
    suffixes = image_suffixes()
    assert {".jpg", ".jfif", ".jpe", ".jp2", ".avif", ".mpo", ".tiff", ".webp"} <= suffixes.keys()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".h5", ".wmf", ".fits"} & suffixes.keys()
    assert set(SUFFIX_FORMATS) <= set(suffixes.values())


def test_a_twelve_bit_png_is_dark_and_says_that_it_is_sixteen_bit() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RAMP * 16)
    header = struct.pack(">IIBBBBB", 64, 4, 16, 0, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    body = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    decoded = decode_image(b"\x89PNG\r\n\x1a\n" + body)
    assert decoded.sixteen_bit
    assert np.asarray(decoded.image).max() == 15
