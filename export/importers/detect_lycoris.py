"""What can be told of a foreign file from its tensors' names alone: that it is LyCORIS' GLoRA.

LyCORIS gives another formula the same name. Its files come without the configuration of an adapter,
so that without a look at the names they would be refused for what they lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from glora_deploy.backbones.checkpoint_file import load_torch
from glora_deploy.errors import ArtifactError
from glora_deploy.file_kind import refuse_known

_LYCORIS = re.compile(r".+\.[ab][12]\.weight")
_TORCH_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})


def refuse_lycoris(source: Path) -> None:
    """Refuse a file, or a folder with one, that holds LyCORIS' GLoRA.

    Anything else passes, a source that is missing or damaged too: whoever reads it says so.

    Raises:
        ArtifactError: If it does; says how the formulas differ.
    """
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        require_no_lycoris(_names(path), path)


def require_no_lycoris(names: Iterable[str], path: Path) -> None:
    """Check the names of a file's tensors.

    Raises:
        ArtifactError: If they are those of LyCORIS' GLoRA.
    """
    if odd := next(filter(_LYCORIS.fullmatch, names), None):
        raise ArtifactError(
            f"{path}: {odd} is LyCORIS' GLoRA, another formula: it adds the matrix product "
            "w0 @ A, where GLoRA multiplies w0 by A entry by entry. It cannot be imported."
        )


def safetensors_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, of any types.

    Raises:
        ArtifactError: If it is none; says what else, if that is known.
    """
    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        if path.is_file():
            refuse_known(path)
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error


def _names(path: Path) -> list[str]:
    """Names in a file; none if it cannot be read."""
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors_names(path)
        if path.suffix.lower() in _TORCH_SUFFIXES:
            return [name for name in load_torch(path, mmap=True) if isinstance(name, str)]
    except (ArtifactError, OSError):
        pass
    return []
