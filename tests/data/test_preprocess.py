from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from glora_deploy.data.image_file import MAX_PIXELS
from glora_deploy.data.preprocess import (
    Preprocessing,
    load_image,
    normalise,
    preprocess_batch,
    to_pixels,
)
from glora_deploy.errors import DataError

IMAGENET: dict[str, Any] = {
    "input_size": (3, 24, 24),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
PLAIN = Preprocessing.from_timm(IMAGENET)


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def preprocessed(image: Image.Image, preprocessing: Preprocessing) -> Any:
    """One image as a batch takes it, ``(3, h, w)``."""
    return preprocess_batch([image], preprocessing)[0]


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def timm_transform(config: dict[str, Any], image: Image.Image) -> np.ndarray:
    tensor = timm.data.create_transform(**config, is_training=False)(image)
    assert isinstance(tensor, torch.Tensor)
    return tensor.numpy()


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(24, 24), (17, 31), (40, 22)])
def test_the_array_is_bit_equal_to_timms_transform(crop_mode: str, size: tuple[int, int]) -> None:
    images = [
        make_image(width, height)
        for width, height in [(24, 24), (8, 8), (1, 1), (61, 37), (37, 61), (200, 9)]
    ]
    for interpolation, crop_pct in itertools.product(
        ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"],
        [1.0, 0.95, 0.875, 0.6, 1.15, 1.5],
    ):
        config = IMAGENET | {
            "input_size": (3, *size),
            "crop_mode": crop_mode,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
        }
        for image in images:
            np.testing.assert_array_equal(
                preprocessed(image, Preprocessing.from_timm(config)),
                timm_transform(config, image),
                err_msg=f"{config} {image.size}",
            )


def test_a_very_long_image_keeps_a_line_of_pixels() -> None:
    config = IMAGENET | {"crop_mode": "border", "crop_pct": 1.0}
    pixels = to_pixels(Image.new("RGB", (500, 1), "white"), Preprocessing.from_timm(config))
    assert (pixels == 255).all(axis=(1, 2)).sum() == 1


def test_the_array_is_bit_equal_to_timm_at_full_size_on_random_sizes() -> None:
    config = IMAGENET | {"input_size": (3, 224, 224), "crop_pct": 0.9}
    rng = random.Random(7)
    for seed in range(6):
        image = make_image(rng.randint(30, 700), rng.randint(30, 700), seed)
        np.testing.assert_array_equal(
            preprocessed(image, Preprocessing.from_timm(config)), timm_transform(config, image)
        )


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224.augreg_in21k",
        "vit_small_patch14_dinov2.lvd142m",
        "convnext_tiny.fb_in22k",
        "swin_tiny_patch4_window7_224.ms_in22k",
        "mobilenetv3_small_100.lamb_in1k",
        "efficientnet_b0.ra_in1k",
    ],
)
def test_the_data_configs_of_common_models_are_taken_over(name: str) -> None:
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()  # type: ignore[attr-defined]
    )
    image = make_image(300, 260)
    np.testing.assert_array_equal(
        preprocessed(image, Preprocessing.from_timm(config)), timm_transform(config, image)
    )


def test_every_pixel_value_is_normalised_as_torch_does() -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    mean, std = torch.tensor(PLAIN.mean), torch.tensor(PLAIN.std)
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
    expected = expected.sub(mean[:, None, None]).div(std[:, None, None])
    np.testing.assert_array_equal(normalise(pixels, PLAIN), expected.numpy())


def test_a_batch_equals_its_images_one_by_one() -> None:
    images = [make_image(30, 40, 1), make_image(90, 20, 2)]
    batch = preprocess_batch(images, PLAIN)
    assert batch.shape == (2, 3, 24, 24)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    for one, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(one, preprocessed(image, PLAIN))


def test_an_empty_batch_has_the_right_shape() -> None:
    assert preprocess_batch([], PLAIN).shape == (0, 3, 24, 24)


def test_cached_pixels_give_the_same_array_as_the_image() -> None:
    image = make_image(50, 33)
    pixels = to_pixels(image, PLAIN)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    before = pixels.copy()
    np.testing.assert_array_equal(normalise(pixels, PLAIN), preprocessed(image, PLAIN))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "random"}, "interpolation must be one of .*got 'random'"),
        ({"crop_mode": "middle"}, "crop_mode must be one of .*got 'middle'"),
        ({"crop_pct": 2.5}, "crop_pct must be above 0 and at most 2, got 2.5"),
        ({"crop_pct": 0.0}, "crop_pct must be above 0 and at most 2, got 0.0"),
        ({"crop_pct": 1.5, "input_size": (3, 1, 24)}, r"must leave a pixel .*1.5, got \(1, 24\)"),
        ({"input_size": (1, 24, 24)}, r"must be \(3, height, width\), got 1 channels"),
        ({"input_size": (3, 0, 24)}, r"size must be \(height, width\) in pixels, got \(0, 24\)"),
        ({"std": (0.2, 0.0, 0.2)}, "std positive"),
    ],
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_timm(IMAGENET | change)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_files_of_every_format_are_read(tmp_path: Path, format_: str) -> None:
    image = Image.new("RGB", (5, 3), (200, 100, 50))
    path = tmp_path / "image"
    path.write_bytes(encode(image, format_, **({"lossless": True} if format_ == "WEBP" else {})))
    read = load_image(path)
    assert (read.mode, read.size) == ("RGB", (5, 3))
    np.testing.assert_allclose(np.asarray(read, int), np.asarray(image, int), atol=3)


@pytest.mark.parametrize("format_", ["BMP", "TIFF", "GIF"])
def test_bytes_of_rarer_formats_are_refused(format_: str) -> None:
    with pytest.raises(DataError, match="must be a whole JPEG, PNG, WEBP image"):
        load_image(encode(make_image(5, 3), format_))


def test_the_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to stand upright
    read = np.asarray(load_image(encode(image, "JPEG", exif=exif)), int)
    assert read.shape == (40, 20, 3)
    assert read[:, 15:].min() > 200
    assert read[:, :5].max() < 50


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    read = load_image(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(np.asarray(read)[0, :, 0], [0, 0, 1, 255])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (4, 4), 255).convert("RGB").convert(mode)
    read = load_image(encode(grey, "JPEG" if mode == "CMYK" else "PNG"))
    assert read.mode == "RGB"
    assert np.asarray(read).min() == 255


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    read = load_image(encode(image, "PNG", transparency=b"\x00\xff"))
    np.testing.assert_array_equal(np.asarray(read), [[[10, 20, 30], [40, 50, 60]]])


def make_png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("width", [MAX_PIXELS // 1000 + 1, 1_000_000])
def test_too_many_pixels_are_refused_before_decoding(width: int) -> None:
    with pytest.raises(DataError, match=r"^image: .*pixels"):
        load_image(make_png_header(width, 1000))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damaged_bytes_give_an_image_or_a_data_error(format_: str) -> None:
    whole = encode(make_image(40, 30), format_)
    rng = random.Random(3)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            image = load_image(bytes(damaged[: rng.randint(1, len(damaged))]))
        except DataError:
            refused += 1
        else:
            assert image.mode == "RGB"
    assert refused > 50


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encode(make_image(40, 30), "JPEG")[:400])
    with pytest.raises(DataError, match=rf"^{path}: must be a whole JPEG, PNG.* image"):
        load_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/none.png: cannot be read: No such file"):
        load_image(tmp_path / "none.png")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}: cannot be read: Is a directory"):
        load_image(tmp_path)
