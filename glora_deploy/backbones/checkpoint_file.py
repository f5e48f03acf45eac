"""Tensors out of a checkpoint as people have them: wrapped, prefixed, beside other things.

A trainer saves a network inside its own: under ``state_dict`` or ``model``, each name behind
``module.`` or ``model.``, a teacher beside its student. All of this is a path to the network. Here
such a file is one flat mapping of dotted names, and the network lies behind the prefix under which
most of its own names are found. No code of a file is run.
"""

from __future__ import annotations

import argparse
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ArtifactError, NonFiniteError
from ..file_kind import AGAIN, Kind, require_weights
from .checkpoint_name import split_part

_LOG = logging.getLogger(__name__)
_MAX_DEPTH = 5
_EMA = re.compile(r"(^|[._])ema([._]|$)")
# Plain values that trainers save beside the weights: what was asked for, and numbers of NumPy.
# Making one runs no code of the file.
_SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    # NumPy 1 and 2 name one function differently, and pickles hold the name.
    *(
        (np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ),
]


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A file of weights, and which part of it to take."""

    path: Path
    part: str | None
    """Leading parts of the names to take, as in ``teacher.backbone``; None for the whole file."""

    @classmethod
    def parse(cls, text: Path | str) -> CheckpointFile:
        """As ``split_part``.

        Raises:
            StoreError: If there is no such file.
        """
        return cls(*split_part(text))

    @property
    def source(self) -> str:
        """What a manifest says of it: no folder."""
        return f"file:{self.path.name}" + (f"#{self.part}" if self.part else "")

    def kind(self) -> Kind:
        """Of the file, by its content.

        Raises:
            ArtifactError: As :func:`.file_kind.require_weights`.
        """
        return require_weights(self.path)

    def read(self) -> dict[str, Any]:
        """The content: names to tensors, or the mapping of mappings that a trainer saved.

        Raises:
            ArtifactError: If the file is damaged, holds objects of Python, or lacks the part.
        """
        if self.kind() == "safetensors":
            try:
                content: dict[str, Any] = dict(load_file(self.path))
            except (SafetensorError, OSError) as error:
                raise ArtifactError(
                    f"{self.path}: cannot be read as weights ({error}). {AGAIN}"
                ) from error
        else:
            content = load_torch(self.path, mmap=True)
        if self.part is None:
            return content
        flat = dict(_flat(content))
        start = f"{self.part}."
        chosen = {n.removeprefix(start): t for n, t in flat.items() if n.startswith(start)}
        if not chosen:
            there = sorted({name.partition(".")[0] for name in flat})
            more = f" and {len(there) - 8} more" if len(there) > 8 else ""
            raise ArtifactError(
                f"{self.path}: #{self.part} must be a part of it, it is not. "
                f"Its parts: {', '.join(there[:8])}{more}."
            )
        return chosen

    def find(self, content: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Tensor]:
        """The tensors of one network, wherever it lies in the content; says so in the log.

        Args:
            content: As from :meth:`read`.
            names: Of the network's tensors.

        Returns:
            What lies behind the prefix under which most of them are; empty if there is no prefix
            under which at least half of them are.

        Raises:
            ArtifactError: If there are several such prefixes; says how to choose.
        """
        flat = dict(_flat(content))
        found = _prefixes(flat, names)
        if not found:
            return {}
        prefix = found[0] if len(found) == 1 else self._choose(found)
        inside = {n.removeprefix(prefix): t for n, t in flat.items() if n.startswith(prefix)}
        if prefix:
            others = len(flat) - len(inside)
            beside = f", none of the {others} others" if others else ""
            _LOG.warning(
                "%s: took the %d tensors behind %r%s", self.path, len(inside), prefix, beside
            )
        return inside

    def _choose(self, prefixes: Sequence[str]) -> str:
        """The averaged weights, as timm takes them, where they are one of two."""
        if len(averaged := [prefix for prefix in prefixes if _EMA.search(prefix)]) == 1:
            return averaged[0]
        parts = _telling(prefixes)
        whole = f"{self.part}." if self.part else ""
        raise ArtifactError(
            f"{self.path}: must hold the network once, it does {len(parts)} times: "
            f"{', '.join(part or 'without a prefix' for part in parts)}. "
            f"Choose one by --checkpoint '{self.path}#{whole}{parts[-1]}'."
        )


def load_torch(path: Path, *, mmap: bool = False) -> dict[Any, Any]:
    """A file of torch, as long as it is a mapping of plain values; no code of it is run.

    Args:
        path: The file.
        mmap: Leave the tensors in the file, where its format allows that.

    Raises:
        ArtifactError: If it is not.
        OSError: If there is no such file.
    """
    # By its name alone torch.load would take a file for safetensors; an open file has none, but
    # cannot be mapped.
    mmap = mmap and path.suffix.lower() != ".safetensors" and zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_SAFE), path.open("rb") as file:
            content = torch.load(
                path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
            )
    except OSError:
        raise
    except Exception as error:  # torch.load raises whatever the damaged bytes provoke
        raise ArtifactError(
            f"{path}: must hold tensors and plain values only: {_reason(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: must hold a mapping, got a {type(content).__name__}")
    return content


def unwrapped(content: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict in a checkpoint where timm itself looks for it; else the content."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        inside = content.get(key)
        if isinstance(inside, Mapping) and any(isinstance(v, Tensor) for v in inside.values()):
            return dict(inside)
    return dict(content)


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with which no network computes anything.

    Raises:
        NonFiniteError: If one holds NaN or infinity; names the first.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        tensor = tensors[bad[0]]
        count = int((~torch.isfinite(tensor)).sum())
        more = f", and so do {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise NonFiniteError(
            f"{where}: {bad[0]} must be finite, it holds NaN or infinity in {count} of "
            f"{tensor.numel()} numbers{more}. Give other weights, or save these in float32."
        )


def _reason(error: Exception) -> str:
    """Why torch would not read a file, without its advice to run the file's code."""
    text = str(error).strip()
    if found := re.search(r"Unsupported (?:global|class)\W*(?:GLOBAL )?(\S+)", text):
        return (
            f"it holds {found[1]}, and to make one would run code of the file. "
            "Save its state_dict() alone where it comes from."
        )
    first = text.splitlines()[0] if text else type(error).__name__
    if "weights_only" in first or "Weights only" in first:
        first = "it is damaged, or no file of torch"
    return f"{first.removesuffix('.')}. {AGAIN}"


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[Any]:
    """``(dotted name, tensor)`` of every tensor in mappings of mappings."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(key, str) and isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)


def _prefixes(flat: Collection[str], names: Collection[str]) -> list[str]:
    """Every prefix behind which most of the names lie, if that is at least half of them."""
    counts: Counter[str] = Counter()
    for full in flat:
        starts = (0, *(match.end() for match in re.finditer(r"\.", full)))
        counts.update(full[:start] for start in starts if full[start:] in names)
    most = max(counts.values(), default=0)
    return sorted(p for p, n in counts.items() if n == most) if 2 * most >= len(names) else []


def _telling(prefixes: Sequence[str]) -> list[str]:
    """The fewest leading parts of each prefix that no other one begins with."""
    telling = []
    for prefix in prefixes:
        parts = prefix.removesuffix(".").split(".")
        shorter = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        others = [other for other in prefixes if other != prefix]
        telling.append(
            next(
                (s for s in shorter if not any(o.startswith(f"{s}.") for o in others)), shorter[-1]
            )
        )
    return telling
