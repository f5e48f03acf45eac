"""What leaves the machine names no place on it: where the data lay is known to the store alone."""

from __future__ import annotations

import json
import re
from pathlib import PureWindowsPath

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
    if _REPOSITORY.fullmatch(text):
        return text
    return PureWindowsPath(text).name or "unnamed"


def redacted(manifest: Manifest) -> Manifest:
    """The manifest as others may see it.

    ``training.data`` loses its place. Imports of earlier releases may also have kept the folder of
    the model that an adapter was trained on; of it the name stays.
    """
    training = manifest.training
    changes: dict[str, object] = {}
    if training.data is not None:
        changes["data"] = data_kind(training.data)
    if isinstance(origin := training.settings.get("trained_on"), str):
        changes["settings"] = {**training.settings, "trained_on": name_alone(origin)}
    hidden = training.model_copy(update=changes)
    return manifest if hidden == training else manifest.model_copy(update={"training": hidden})


def names_place(manifest: Manifest, data: bytes) -> bool:
    """Whether bytes name the place of the data that a delta was trained on."""
    spec = manifest.training.data
    if spec is None or data_kind(spec) == spec:
        return False
    spellings = (spec, json.dumps(spec)[1:-1], json.dumps(spec, ensure_ascii=False)[1:-1])
    return any(spelling.encode() in data for spelling in spellings)
