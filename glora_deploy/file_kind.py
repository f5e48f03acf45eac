"""What a file of weights is by its content; one that is none is named for what it is.

A name says little: a clone without Git LFS leaves a pointer under ``model.safetensors``, a browser
saves the page about a file under the file's name, and suffixes come in capitals.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from .errors import ArtifactError

Kind = Literal["safetensors", "torch", "npz"]

AGAIN = "Download or save it again."

_HEAD_BYTES = 1024
_MAX_HEADER_BYTES = 100_000_000  # of safetensors, by its own specification
_PICKLE = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
    (b"GGUF", "a GGUF file, as llama.cpp reads it"),
    (b"\x93NUMPY", "a single NumPy array"),
)


def require_weights(path: Path) -> Kind:
    """The kind of a file of weights.

    Args:
        path: A file that exists; its suffix is not looked at.

    Raises:
        ArtifactError: If it is something else, such as a Git LFS pointer or a web page; says what,
            and what to do.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise _refusal(path, "an empty file", AGAIN)
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= _MAX_HEADER_BYTES:
        return "safetensors"
    if head.startswith(_PICKLE):
        return "torch"
    refuse_known(path)
    if tarfile.is_tarfile(path):
        raise _refusal(path, "a tar archive", "Unpack it and give the weights in it.")
    raise _refusal(path, "something that is no safetensors, torch or npz file", AGAIN)


def refuse_known(path: Path) -> None:
    """Name a file that is well known not to hold weights; anything else passes.

    Raises:
        ArtifactError: If it is a Git LFS pointer, a web page, another text, an archive, or a format
            that is not read here.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"version https://git-lfs.github.com/"):
        raise _refusal(path, "a Git LFS pointer", "Run 'git lfs pull' in its repository.")
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise _refusal(path, name, "Unpack it and give the weights in it.")
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise _refusal(path, name, "Give weights of PyTorch or timm.")
    if (text := _text(head)) is None:
        return
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head")):
        raise _refusal(
            path,
            "a web page",
            "Download the file itself; on the Hub its address has /resolve/, that of its page "
            "/blob/.",
        )
    if start:
        first = " ".join(text.split())[:40]
        raise _refusal(path, f"a text that begins with {first!r}", "Give the weights themselves.")


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _refusal(path, "a zip archive cut short", AGAIN) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise _refusal(path, "a TorchScript program", "Save the state_dict() of its network.")
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    inside = f"a zip archive with {names[0]}" if names else "an empty zip archive"
    raise _refusal(path, inside, "Unpack it and give the weights in it.")


def _text(head: bytes) -> str | None:
    """The head as text; None if it is none. A character cut at its end does not count."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _HEAD_BYTES:
            return None
        text = head[: error.start].decode("utf-8")
    return text if all(c.isprintable() or c in "\ufeff\t\r\n" for c in text) else None


def _refusal(path: Path, what: str, fix: str) -> ArtifactError:
    return ArtifactError(f"{path}: must be weights, got {what}. {fix}")
