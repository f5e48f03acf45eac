"""What leaves the machine names no place on it: where the data lay is known to the store alone."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from .manifest import Manifest

_SPEC = re.compile(r"([A-Za-z0-9_-]+)(?::.*)?", re.DOTALL)
_REPOSITORY = re.compile(
    r"(?:hf[-_]hub:)?[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?(?:@[\w.-]+)?"
)


def data_kind(spec: str) -> str:
    """A data spec without its place.

    >>> data_kind("folder:/home/ann/clients/acme"), data_kind("digits"), data_kind("/home/ann")
    ('folder', 'digits', 'unnamed')
    """
    found = _SPEC.fullmatch(spec)
    return found[1] if found else "unnamed"


def name_alone(text: str) -> str:
    """The name of a model repository as it is; of a path only what it ends in.

    >>> name_alone("google/vit-base"), name_alone("/home/ann/models/vit"), name_alone("../vit")
    ('google/vit-base', 'vit', 'vit')
    """
    if _REPOSITORY.fullmatch(text) and not Path(text).exists():
        return text
    return PureWindowsPath(text).name or "unnamed"


def redacted(manifest: Manifest) -> Manifest:
    """The manifest as others may see it; everything but ``training.data`` is as it was."""
    data = manifest.training.data
    if data is None or data_kind(data) == data:
        return manifest
    training = manifest.training.model_copy(update={"data": data_kind(data)})
    return manifest.model_copy(update={"training": training})
