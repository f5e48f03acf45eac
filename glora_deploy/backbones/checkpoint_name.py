"""What may be written for weights of one's own: a file, a part of one, or ``random:SEED``."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import StoreError
from ..strict_record import short

RANDOM = "random:"

_FILE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,255}")
"""What a manifest's ``file:BASENAME`` can hold; the last are the bytes of a name not in UTF-8."""


def split_part(text: Path | str) -> tuple[Path, str | None]:
    """Split ``FILE`` or ``FILE#PART``; the name of a file may itself hold ``#``.

    Returns:
        The file, and the leading parts of the names to take, None for the whole file.

    Raises:
        StoreError: If there is no such file.
    """
    path, (file, mark, part) = Path(text), str(text).rpartition("#")
    if mark and part.strip(".") and not path.is_file() and Path(file).is_file():
        return Path(file), part.removesuffix(".")
    if not path.is_file():
        raise StoreError(f"{path}: the checkpoint must be a file. Give .safetensors, .npz or .pth.")
    return path, None


def require_recordable(checkpoint: Path | str) -> None:
    """Check that a manifest can say where these weights came from.

    Raises:
        ValueError: If the seed of ``random:SEED`` is none, or a file's name is not plain text.
    """
    text = str(checkpoint)
    if text.startswith(RANDOM):
        seed = text.removeprefix(RANDOM)
        if not re.fullmatch(r"[0-9]{1,20}", seed) or int(seed) >= 2**64:
            raise ValueError(
                f"checkpoint random:SEED must have a whole number from 0 to {2**64 - 1}, "
                f"got {short(text)}"
            )
        return
    name = Path(text).name
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(
            "the name of a checkpoint file must be UTF-8 text without backslashes and control "
            f"characters, got {short(name)}. Rename it."
        )
