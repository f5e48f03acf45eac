"""Files that were made to hurt a decoder: each is answered, and the server lives on."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
MANY_ZEROS = b"\0" * (64 << 20)
EXIF_TAGS = {"orientation": {0x0112: 99}, "text": {0x010E: "x" * 60_000}}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A PNG of RGB by its header, and whatever chunks follow."""
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", head), *chunks, (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(name + data))
        parts.append(struct.pack(">I", len(data)) + name + data + crc)
    return b"".join(parts)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG that says it is larger than it is."""
    data = bytearray(saved(NOISE, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """The header of a lossless WEBP, and no pixels."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + b"\0" * 11
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def exif(tags: dict[int, object]) -> bytes:
    made = Image.Exif()
    for tag, value in tags.items():
        made[tag] = value
    return made.tobytes()


def noted() -> PngInfo:
    made = PngInfo()
    made.add_text("Comment", "x" * (1 << 22), zip=True)
    return made


def oversized() -> Iterator[tuple[str, bytes]]:
    """Far more pixels than are allowed, by a header that costs nothing."""
    row = zlib.compress(b"\0" * 1000)
    yield "png", png(60_000, 60_000, (b"IDAT", row))
    yield "png of the largest numbers", png(2**31 - 1, 2**31 - 1, (b"IDAT", row))
    yield "jpeg", jpeg(65_500, 65_500)
    yield "webp", webp(16_383, 16_383)


def refused() -> Iterator[tuple[str, bytes]]:
    """Of another format, or of none."""
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PDF", "EPS", "JPEG2000", "AVIF"):
        yield kind, saved(NOISE, kind)
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    yield "pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "nothing but a PNG's first bytes", b"\x89PNG\r\n\x1a\n"
    yield "no width", png(0, 10, (b"IDAT", zlib.compress(b"\0" * 40)))
    yield "no pixels", png(40, 40)
    yield "unknown depth", png(40, 40, (b"IDAT", zlib.compress(b"\0" * 5000)), depth=13)
    yield "a chunk that has no end", png(40, 40)[:-12] + struct.pack(">I", 2**31) + b"IDAT"
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = saved(NOISE, kind)
        for share in (0.02, 0.1, 0.3, 0.6, 0.9):
            yield f"{share} of a {kind}", whole[: int(share * len(whole))]


def answered() -> Iterator[tuple[str, bytes]]:
    """Odd, and images all the same."""
    yield "one pixel", saved(Image.new("RGB", (1, 1)), "PNG")
    yield "as wide as JPEG can be", saved(Image.new("RGB", (65_500, 1)), "JPEG")
    yield "as high as JPEG can be", saved(Image.new("RGB", (1, 65_500)), "JPEG")
    yield "a million wide", saved(Image.new("RGB", (1_000_000, 1)), "PNG")
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield mode, saved(NOISE.convert("L").convert(mode), "PNG")
    yield "palette that is clear in parts", saved(NOISE.convert("P"), "PNG", transparency=3)
    yield "cmyk", saved(NOISE.convert("CMYK"), "JPEG")
    yield "progressive", saved(NOISE, "JPEG", progressive=True)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    for kind in ("PNG", "WEBP"):
        yield f"animated {kind}", saved(frames[0], kind, save_all=True, append_images=frames[1:])
    for name, tags in EXIF_TAGS.items():
        yield f"exif: {name}", saved(NOISE, "JPEG", exif=exif(tags))


def either() -> Iterator[tuple[str, bytes]]:
    """What Pillow takes or leaves; it must not cost what it says it holds."""
    zeros = zlib.compress(MANY_ZEROS)
    yield "more pixels than the header says", png(40, 40, (b"IDAT", zeros))
    yield "a compressed text of megabytes", saved(NOISE, "PNG", pnginfo=noted())
    yield "a text that says nothing", png(40, 40, (b"zTXt", b"a\0\0" + zeros), (b"IDAT", zeros))
    yield "a profile of megabytes", png(40, 40, (b"iCCP", b"a\0\0" + zeros), (b"IDAT", zeros))
    damaged = bytearray(saved(NOISE, "PNG"))
    damaged[60] ^= 255
    yield "a wrong checksum", bytes(damaged)
    yield "exif: of another length", saved(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")


STATUS = {oversized: {413}, refused: {400}, answered: {200}, either: {200, 400}}


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        pytest.param(data, allowed, id=f"{make.__name__}: {name}")
        for make, allowed in STATUS.items()
        for name, data in make()
    ],
)
def test_hostile_images_are_answered_one_way_or_the_other(
    client: TestClient, data: bytes, allowed: set[int]
) -> None:
    uploaded = client.post("/v1/tasks/pets/predict", content=data)
    packed = len(data).to_bytes(4, "little") + data
    head = (
        b'{"inputs":[{"name":"image_bytes","datatype":"BYTES","shape":[1],'
        b'"parameters":{"binary_data_size":%d}}]}' % len(packed)
    )
    asked = client.post(
        "/v2/models/pets/infer",
        content=head + packed,
        headers={"inference-header-content-length": str(len(head))},
    )
    for response in (uploaded, asked):
        assert response.status_code in allowed, response.text
        if response.status_code != 200:
            assert set(response.json()) == {"error"}
            assert "Traceback" not in response.text
            assert "/" not in response.json()["error"]
    assert uploaded.status_code == asked.status_code
    assert client.get("/v2/health/live").status_code == 200
