"""The typed parts of a manifest, and the rules their fields obey."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    model_validator,
)

from ..errors import ArtifactError
from ..glora.forms import LayerForms, LayerKind, LayerShape
from ..glora.shared_factors import SharedKind
from ..strict_record import Count, Line, Record, one_line_only, short

Dtype = Literal["float32", "float16", "bfloat16"]

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Words of the inference protocol's own routes, and the file beside the versions of a task.
_RESERVED = {"task": {"stats", "ready", "load"}, "version": {"current"}}


def slug_problem(kind: Literal["task", "version", "precision"], name: str) -> str | None:
    """Why this text cannot name a task, version or precision; None if it can.

    >>> slug_problem("task", "../etc")
    "must be 1 to 64 of A-Z a-z 0-9 . _ - and start with a letter or digit, got '../etc'"
    """
    if not _SLUG.fullmatch(name):
        return (
            "must be 1 to 64 of A-Z a-z 0-9 . _ - and start with a letter or digit, "
            f"got {short(name)}"
        )
    if name.lower() in _RESERVED.get(kind, ()):
        return f"must not be the reserved word {name!r}"
    return None


def _slug(kind: Literal["task", "version"]) -> AfterValidator:
    def check(name: str) -> str:
        if problem := slug_problem(kind, name):
            raise ValueError(problem)
        return name

    return AfterValidator(check)


def _real_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"must be a time that exists, got {text!r}") from error
    return text


def _finite_json(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("must hold JSON values with finite numbers") from None
    return value


TaskName = Annotated[str, _slug("task")]
VersionName = Annotated[str, _slug("version")]
Time = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"),
    AfterValidator(_real_time),
]
_NAME = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
ModuleName = Annotated[str, Field(pattern=_NAME, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_line_only)]
Settings = Annotated[dict[str, JsonValue], AfterValidator(_finite_json)]
Size = Annotated[int, Field(ge=1, le=2**24)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_PathText = Annotated[str, Field(pattern=r"^(lora:[1-9][0-9]{0,4}|vector|scalar|none)$")]


class BackboneRecord(Record):
    """The frozen network the delta belongs to."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    """timm registry name of the architecture, without a pretrained tag."""
    model_args: Settings
    """Constructor arguments of ``timm.create_model`` other than num_classes; JSON values."""
    source: Annotated[
        str,
        Field(
            pattern=r"^((timm|packaged):[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
            r"|file:[^/\\\x00-\x1f\x7f]{1,255}|random:[0-9]{1,20})$"
        ),
    ]
    """Where its weights came from: timm:NAME, packaged:NAME, file:BASENAME or random:SEED."""
    fingerprint: Sha256
    """``fingerprint`` of its tensors, classifier excluded."""
    classifier: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=8)]
    """Dotted names of the modules that map features to classes."""
    input_size: tuple[Annotated[int, Field(ge=1, le=64)], Pixels, Pixels]
    """Channels, height, width of one image."""


class PreprocessingRecord(Record):
    """How an image becomes the network's input; the fields of timm's data config."""

    mean: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1)]
    """Subtracted per channel, on the 0-1 scale."""
    std: Annotated[
        tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)
    ]
    """Divided by, per channel, on the 0-1 scale."""
    size: tuple[Pixels, Pixels]
    """Height and width in pixels."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    crop_pct: Annotated[float, Field(gt=0, le=2)]
    """Side of the crop as a share of the resized image; above 1 a border is added."""
    crop_mode: Literal["center", "squash", "border"]


class PathsRecord(Record):
    """The path of each support, as ``glora.forms.Form`` prints it."""

    A: _PathText
    B: _PathText
    C: _PathText
    D: _PathText
    E: _PathText


class LayerRecord(Record):
    """One adapted layer: the shape of its frozen weight and the path of each support."""

    kind: LayerKind
    d_out: Size
    d_in: Size
    bias: bool
    paths: PathsRecord

    @classmethod
    def of(cls, shape: LayerShape, paths: LayerForms) -> LayerRecord:
        """The record of one layer of a subnet.

        Raises:
            ValueError: If a support cannot take its path on this shape.
        """
        return cls(
            kind=shape.kind,
            d_out=shape.d_out,
            d_in=shape.d_in,
            bias=shape.bias,
            paths=PathsRecord(**{support: str(path) for support, path in paths.items()}),
        )

    def layer_shape(self) -> LayerShape:
        """Shape of the frozen layer."""
        return LayerShape(kind=self.kind, d_out=self.d_out, d_in=self.d_in, bias=self.bias)

    def layer_paths(self) -> LayerForms:
        """Path of each support."""
        texts: dict[str, str] = self.paths.model_dump()
        return LayerForms.parse(" ".join(f"{support}={path}" for support, path in texts.items()))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names (``A_d``, ``B``, ...) and shapes of the tensors stored for this layer."""
        return self.layer_paths().tensor_shapes(self.layer_shape())

    @model_validator(mode="after")
    def _fits(self) -> LayerRecord:
        if self.kind == "affine" and self.d_in != 1:
            raise ValueError(f"d_in of an affine layer must be 1, got {self.d_in}")
        self.tensor_shapes()
        return self


class SharedRecord(Record):
    """Factors that the layers share: what the adapter holds in the place of their supports."""

    kind: SharedKind
    rank: Annotated[int, Field(ge=1, le=99_999)]


class FileRecord(Record):
    """The bytes of one stored file."""

    sha256: Sha256
    size_bytes: Count

    @classmethod
    def of_bytes(cls, data: bytes) -> FileRecord:
        """The record of a file with this content."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    @classmethod
    def of_file(cls, path: Path) -> FileRecord:
        """The record of a file as it is on disk now; it is streamed, not held.

        Raises:
            OSError: If it cannot be read.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(sha256=digest, size_bytes=file.tell())

    def require_equal(
        self, found: FileRecord, where: str, stated_in: str, fix: str = "Restore the file."
    ) -> None:
        """Check a file's bytes against this record.

        Raises:
            ArtifactError: If size or sha256 differ; names the file and both sides.
        """
        if found.size_bytes != self.size_bytes:
            raise ArtifactError(
                f"{where}: has {found.size_bytes} bytes on disk, {self.size_bytes} in {stated_in}. "
                f"{fix}"
            )
        if found.sha256 != self.sha256:
            raise ArtifactError(
                f"{where}: sha256 is {found.sha256[:12]}.. on disk, {self.sha256[:12]}.. in "
                f"{stated_in}. {fix}"
            )


class TrainingRecord(Record):
    """How the delta came to be; None where it does not apply or is not known."""

    method: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """``glora``, ``lora``, ``imported``, ..."""
    schedule: Line | None
    data: Line | None
    """The data spec as given."""
    splits_sha256: Sha256 | None
    """Digest of which image went into which split."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None
    epochs: Count | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    device: Line | None
    versions: dict[Line, Line]
    """Library to version."""
    val_accuracy: Fraction | None
    """Top-1 on the validation split, 0 to 1."""
    test_accuracy: Fraction | None
    """Top-1 on the test split, read once at the end, 0 to 1."""
    settings: Settings
    """Everything else that was set; JSON values."""


def utc_now() -> str:
    """The present time as ``Manifest.created`` holds it."""
    return utc_text(datetime.now(UTC))


def utc_text(time: datetime) -> str:
    """A UTC time as ``Manifest.created`` holds it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
