"""manifest.json: what one artifact is, as typed fields, to and from bytes (docs/format.md).

A manifest is written once and never changed. Reading is strict: a field that is missing, unknown,
of another type or out of bounds is refused, and so is a count that does not follow from the layers.
The writer of an artifact knows the ``ManifestDraft`` part; the rest follows from the tensors and
from where the store puts them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from .errors import ArtifactError
from .paths import LayerKind, LayerPaths, LayerShape, Subnet

FORMAT_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 16 * 2**20
Dtype = Literal["float32", "float16", "bfloat16"]
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}

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
    datetime.fromisoformat(text)
    return text


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _finite_json(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("must hold JSON values with finite numbers") from None
    return value


_NAME = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
ModuleName = Annotated[str, Field(pattern=_NAME, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_one_line)]
Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Settings = Annotated[dict[str, JsonValue], AfterValidator(_finite_json)]
Size = Annotated[int, Field(ge=1, le=2**24)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Count = Annotated[int, Field(ge=0, le=2**40)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PathText = Annotated[str, Field(pattern=r"^(lora:[1-9][0-9]{0,4}|vector|scalar|none)$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class BackboneRecord(_Record):
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


class PreprocessingRecord(_Record):
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
    crop_pct: Annotated[float, Field(gt=0, le=1)]
    """Side of the crop as a share of the resized image."""
    crop_mode: Literal["center", "squash", "border"]


class PathsRecord(_Record):
    """The path of each support, as ``paths.Path`` prints it."""

    A: PathText
    B: PathText
    C: PathText
    D: PathText
    E: PathText


class LayerRecord(_Record):
    """One adapted layer: the shape of its frozen weight and the path of each support."""

    kind: LayerKind
    d_out: Size
    d_in: Size
    bias: bool
    paths: PathsRecord

    @classmethod
    def of(cls, shape: LayerShape, paths: LayerPaths) -> LayerRecord:
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

    def layer_paths(self) -> LayerPaths:
        """Path of each support."""
        texts: dict[str, str] = self.paths.model_dump()
        return LayerPaths.parse(" ".join(f"{support}={path}" for support, path in texts.items()))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names (``A_d``, ``B``, ...) and shapes of the tensors stored for this layer."""
        return self.layer_paths().tensor_shapes(self.layer_shape())

    @model_validator(mode="after")
    def _fits(self) -> LayerRecord:
        if self.kind == "affine" and self.d_in != 1:
            raise ValueError(f"d_in of an affine layer must be 1, got {self.d_in}")
        self.tensor_shapes()
        return self


class FileRecord(_Record):
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

    def require_equal(self, found: FileRecord, where: str, stated_in: str) -> None:
        """Check a file's bytes against this record.

        Raises:
            ArtifactError: If size or sha256 differ; names the file and both sides.
        """
        if found.size_bytes != self.size_bytes:
            raise ArtifactError(
                f"{where}: has {found.size_bytes} bytes on disk, {self.size_bytes} in {stated_in}. "
                "Restore the file."
            )
        if found.sha256 != self.sha256:
            raise ArtifactError(
                f"{where}: sha256 is {found.sha256[:12]}.. on disk, {self.sha256[:12]}.. in "
                f"{stated_in}. Restore the file."
            )


class TrainingRecord(_Record):
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


class ManifestDraft(_Record):
    """What the writer of an artifact knows before it is stored."""

    backbone: BackboneRecord
    preprocessing: PreprocessingRecord
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=2**20)]
    """Class names; row i of the classifier is class i."""
    layers: dict[ModuleName, LayerRecord]
    """Every adapted layer, in the backbone's module order."""
    training: TrainingRecord

    def shapes(self) -> dict[str, LayerShape]:
        """Shape of every adapted layer, in module order."""
        return {name: layer.layer_shape() for name, layer in self.layers.items()}

    def subnet(self) -> Subnet:
        """Path of every support of every layer, in module order."""
        return Subnet({name: layer.layer_paths() for name, layer in self.layers.items()})

    def support_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (``<layer>.A_d``, ...) and shape of every support tensor."""
        return {
            f"{name}.{tensor}": shape
            for name, layer in self.layers.items()
            for tensor, shape in layer.tensor_shapes().items()
        }

    def is_head(self, tensor: str) -> bool:
        """Whether this state-dict name belongs to the classifier."""
        return tensor.startswith(tuple(f"{name}." for name in self.backbone.classifier))

    @model_validator(mode="after")
    def _consistent(self) -> ManifestDraft:
        n_channels, height, width = self.backbone.input_size
        p = self.preprocessing
        if p.size != (height, width):
            raise ValueError(
                f"preprocessing.size must be the input's ({height}, {width}), got {p.size}"
            )
        for field, values in (("mean", p.mean), ("std", p.std)):
            if len(values) != n_channels:
                raise ValueError(
                    f"preprocessing.{field} must have one entry for each of {n_channels} channels, "
                    f"got {len(values)}"
                )
        for layer in self.layers:
            if self.is_head(f"{layer}."):
                raise ValueError(f"layers must not hold the classifier, got {layer!r}")
        return self


class Manifest(ManifestDraft):
    """All of manifest.json."""

    format_version: Literal[1]
    task: Annotated[str, _slug("task")]
    version: Annotated[str, _slug("version")]
    created: Annotated[
        str,
        Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"),
        AfterValidator(_real_time),
    ]
    """UTC, to the microsecond; sorting the text sorts the times."""
    head: dict[ModuleName, Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)]]
    """Name and shape of every classifier tensor stored in the delta."""
    dtype: Dtype
    """Of every tensor in the delta."""
    n_parameters: Count
    """Numbers stored for supports; the classifier is not counted."""
    n_head_parameters: Count
    adapter: FileRecord
    """adapter.safetensors beside this file."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of adapter.safetensors."""
        return {**self.support_shapes(), **self.head}

    def to_json(self) -> bytes:
        """The bytes of manifest.json; the same manifest always gives the same bytes."""
        fields = self.model_dump(mode="json")
        first = {name: fields.pop(name) for name in _HEADLINE}
        text = json.dumps({**first, **fields}, indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str = "manifest.json") -> Manifest:
        """Read what ``to_json`` wrote.

        Args:
            data: The bytes of manifest.json.
            where: Named in errors.

        Raises:
            ArtifactError: If the bytes are not a manifest this release reads; names the first
                field that is wrong and the rule it breaks.
        """
        _require_readable(data, where)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ArtifactError(f"{where}: {first_problem(error)}") from error

    @model_validator(mode="after")
    def _counts(self) -> Manifest:
        supports = self.support_shapes()
        n_supports = _count(supports.values())
        n_head = _count(self.head.values())
        for field, stated, found in (
            ("n_parameters", self.n_parameters, n_supports),
            ("n_head_parameters", self.n_head_parameters, n_head),
        ):
            if stated != found:
                raise ValueError(f"{field} must be {found}, the sum over its tensors, got {stated}")
        self._require_head(supports)
        data_bytes = ITEM_BYTES[self.dtype] * (n_supports + n_head)
        if self.adapter.size_bytes < data_bytes:
            raise ValueError(
                f"adapter.size_bytes must be at least {data_bytes}, the bytes of its tensors, "
                f"got {self.adapter.size_bytes}"
            )
        return self

    def _require_head(self, supports: Mapping[str, Any]) -> None:
        for name in self.backbone.classifier:
            if f"{name}.weight" not in self.head:
                raise ValueError(f"head must hold {name}.weight, got {sorted(self.head)}")
        for name, shape in self.head.items():
            if not self.is_head(name):
                raise ValueError(
                    f"head must hold tensors of {', '.join(self.backbone.classifier)} only, "
                    f"got {name!r}"
                )
            if shape[0] != len(self.labels):
                raise ValueError(
                    f"labels must have one entry for each of the {shape[0]} rows of {name}, "
                    f"got {len(self.labels)}"
                )


_HEADLINE = (
    "format_version",
    "task",
    "version",
    "created",
    "dtype",
    "n_parameters",
    "n_head_parameters",
    "adapter",
)


def utc_now() -> str:
    """The present time as ``Manifest.created`` holds it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _require_readable(data: bytes, where: str) -> None:
    """Refuse what is not one JSON object of this format version, without duplicate keys or NaN."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"{where}: must have at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}"
        )
    try:
        raw = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: must be JSON: {error}. Restore the file.") from error
    if not isinstance(raw, dict) or "format_version" not in raw:
        raise ArtifactError(f"{where}: must be an object with format_version. Restore the file.")
    if raw["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: format_version must be {FORMAT_VERSION}, the only one this release reads, "
            f"got {short(raw['format_version'])}. Read it with a newer glora-deploy."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {short(key)} must occur once")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {text}")


def first_problem(error: ValidationError) -> str:
    """The first problem as ``field: rule, got value``, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "missing":
            rule = "must be present"
        case "extra_forbidden":
            rule = "is not a field of this format"
        case "value_error":
            rule = str(first["ctx"]["error"])
        case _:
            rule = f"{first['msg'].replace('Input should', 'must')}, got {short(first['input'])}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {rule}{more}" if field else f"{rule}{more}"


def short(value: object) -> str:
    """Its repr, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
