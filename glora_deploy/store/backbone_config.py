"""config.json of a backbone in the store: how the network around its tensors was built at first.

Nothing that an export computes is taken from it: that is the manifest's to say, since one backbone
may serve at several input sizes. It says what its weights are licensed as, and it bears witness
where a manifest is not bound to its adapter. Its bytes are sealed by the tensors' file
(docs/format.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors import SafetensorError, safe_open

from ..errors import ArtifactError, BackboneMismatchError
from ..record_file import parse_record, read_bytes
from ..strict_record import Line, short
from .artifact import ABOUT, MANIFEST, Artifact
from .manifest import Manifest
from .manifest_fields import Settings
from .reader import BACKBONE_CONFIG, BACKBONE_WEIGHTS

Numbers = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1)]

_REMEDY = "Restore it, or remove its folder and give the backbone again with --backbone."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class TimmConfig(_Part):
    """timm's ``pretrained_cfg``, as far as it is used."""

    input_size: tuple[int, int, int]
    mean: Numbers
    std: Numbers
    interpolation: str
    crop_pct: float
    crop_mode: str
    classifier: str | tuple[str, ...]
    fixed_input_size: bool | None = None
    """Whether timm builds this architecture for one input size; older releases did not say."""
    license: Line | None
    """Of the weights; None if timm does not know it."""


class BackboneConfig(_Part):
    """config.json of a backbone, as ``Backbone.config`` makes it."""

    architecture: str
    model_args: Settings
    pretrained_cfg: TimmConfig


def seal(config: bytes) -> dict[str, str]:
    """Metadata for the tensors' file that ties these bytes of config.json to it."""
    return {ABOUT: json.dumps({"config_sha256": hashlib.sha256(config).hexdigest()})}


def read_backbone_config(folder: Path) -> BackboneConfig:
    """What a backbone's config.json says.

    Raises:
        ArtifactError: If it is missing, altered, or not the configuration of a backbone; names
            both sides, or the first field that is wrong.
    """
    return _parse(folder, _read_sealed(folder)[0])


def require_intact_config(folder: Path) -> None:
    """Check a backbone's config.json, whatever a sealed one may say.

    Raises:
        ArtifactError: If it is missing or altered, or, of an older release and so not sealed, not
            the configuration of a backbone.
    """
    data, is_sealed = _read_sealed(folder)
    if not is_sealed:
        _parse(folder, data)


def require_agreement(artifact: Artifact, folder: Path) -> None:
    """Check an artifact's manifest against its backbone's config.json, if nothing else binds it.

    A manifest with a digest has no need of it, and may differ: the same tensors serve at another
    input size, or normalised otherwise.

    Args:
        artifact: Of a delta on this backbone.
        folder: The backbone's in the store.

    Raises:
        ArtifactError: If a file is damaged.
        BackboneMismatchError: If the two disagree; names both sides.
    """
    if artifact.is_bound():
        return
    path = artifact.path / MANIFEST
    for field, stated, found in _differences(artifact.manifest, read_backbone_config(folder)):
        raise BackboneMismatchError(
            f"{path}: {field} is {short(stated)}, {short(found)} in "
            f"{folder / BACKBONE_CONFIG}. Restore the one that was altered; if neither was, store "
            "the delta again, which binds its manifest."
        )


def _differences(manifest: Manifest, config: BackboneConfig) -> Iterator[tuple[str, Any, Any]]:
    """Field of the manifest, its value, and the backbone's, where they are not equal."""
    backbone, images, timm = manifest.backbone, manifest.preprocessing, config.pretrained_cfg
    classifier = timm.classifier
    pairs: dict[str, tuple[Any, Any]] = {
        "backbone.name": (backbone.name, config.architecture),
        **_paired("backbone.model_args", backbone.model_args, config.model_args),
        "backbone.input_size": (backbone.input_size, timm.input_size),
        "backbone.classifier": (
            backbone.classifier,
            (classifier,) if isinstance(classifier, str) else classifier,
        ),
        "preprocessing.mean": (images.mean, timm.mean),
        "preprocessing.std": (images.std, timm.std),
        "preprocessing.interpolation": (images.interpolation, timm.interpolation),
        "preprocessing.crop_pct": (images.crop_pct, timm.crop_pct),
        "preprocessing.crop_mode": (images.crop_mode, timm.crop_mode),
    }
    return ((name, a, b) for name, (a, b) in pairs.items() if a != b)


def _paired(
    name: str, ours: Mapping[str, JsonValue], theirs: Mapping[str, JsonValue]
) -> dict[str, tuple[JsonValue, JsonValue]]:
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return {f"{name}.{key}": (ours.get(key), theirs.get(key)) for key in keys}


def _read_sealed(folder: Path) -> tuple[bytes, bool]:
    """The bytes of config.json, equal to those that were sealed, and whether any were."""
    path, weights = folder / BACKBONE_CONFIG, folder / BACKBONE_WEIGHTS
    data = read_bytes(path)
    try:
        with safe_open(weights, framework="np") as file:
            text = (file.metadata() or {}).get(ABOUT)
        stated = None if text is None else json.loads(text)["config_sha256"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{weights}: its metadata cannot be read ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if stated not in (None, found):
        raise ArtifactError(
            f"{path}: sha256 is {found[:12]}.. on disk, {str(stated)[:12]}.. in "
            f"{BACKBONE_WEIGHTS}. {_REMEDY}"
        )
    return data, stated is not None


def _parse(folder: Path, data: bytes) -> BackboneConfig:
    return parse_record(BackboneConfig, data, str(folder / BACKBONE_CONFIG), _REMEDY)
