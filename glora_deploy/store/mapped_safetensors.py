"""Where each tensor lies inside a safetensors file, and arrays mapped straight onto it.

The safetensors library reads and writes whole tensors. Exports need two things it does not offer:
the byte offsets (an ONNX model points its initializers at them) and writing a file tensor by
tensor through a memory map, so that a merge never holds a second copy of the network.

The layout is the published one: 8 bytes of little-endian header length, the JSON header, then the
data; offsets in the header count from the end of the header.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import ArtifactError
from ..file_kind import refuse_known

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor inside a file: its dtype, shape, and bytes counted from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_layout(path: Path) -> dict[str, Place]:
    """Name, dtype, shape and place of every tensor in a safetensors file, in file order.

    Raises:
        ArtifactError: If the file is missing, damaged, something else, or holds a dtype this
            project does not use.
    """
    try:
        # The library validates the header: lengths, overlaps, holes, sizes.
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        if path.is_file():
            refuse_known(path)
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error
    header.pop("__metadata__", None)
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ArtifactError(f"{path}: {name} has dtype {entry['dtype']}, which none here reads")
        begin, end = entry["data_offsets"]
        places[name] = Place(
            DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin, end - begin
        )
    return places


class TensorMap(Mapping[str, NDArray[Any]]):
    """Arrays by name over the bytes of one mapped file."""

    def __init__(self, data: mmap.mmap, places: Mapping[str, Place]) -> None:
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self._places = dict(places)

    def __getitem__(self, name: str) -> NDArray[Any]:
        p = self._places[name]
        return self._bytes[p.offset : p.offset + p.size_bytes].view(p.dtype).reshape(p.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the system; its content stays, in the file."""
        place = self._places[name]
        begin = -(-place.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (place.offset + place.size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def map_tensors(path: Path) -> TensorMap:
    """Read-only arrays over the file's bytes; nothing is read until it is touched.

    Raises:
        ArtifactError: As ``read_layout``.
    """
    places = read_layout(path)
    with path.open("rb") as file:
        return TensorMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), places)


def create_tensor_file(
    path: Path,
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> TensorMap:
    """Make a safetensors file of these tensors and return writable arrays over its bytes.

    The file's size is reserved at once, so a full disk is found before any work is done. The
    arrays keep the file open; delete them before it is renamed on systems that mind.

    Args:
        path: New file; must not exist.
        tensors: dtype and shape by name.
        metadata: Text pairs kept in the header.

    Raises:
        OSError: If there is no space or the file exists.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    sizes, offset = {}, 0
    # Widest first, then by name: the library's own order, which keeps every tensor aligned.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda t: (-t[1][0].itemsize, t[0])):
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        sizes[name] = (offset, size)
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {
        name: Place(*tensors[name], start + begin, size) for name, (begin, size) in sizes.items()
    }
    try:
        with path.open("xb+") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            # Reserving blocks, where the platform can, turns a full disk into an error here
            # instead of a SIGBUS in the middle of a merge.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, start + offset)
            else:
                file.truncate(start + offset)
            return TensorMap(mmap.mmap(file.fileno(), 0), places)
    except FileExistsError:
        raise
    except OSError:
        path.unlink(missing_ok=True)
        raise
