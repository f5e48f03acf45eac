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
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, model_validator

from ..errors import ArtifactError
from ..glora.forms import LayerShape, Subnet
from ..glora.shared_factors import shared_forms, shared_shapes
from ..record_file import parse_record
from ..strict_record import Count, Record, first_problem, short
from .manifest_fields import (
    BackboneRecord,
    Dtype,
    FileRecord,
    Label,
    LayerRecord,
    ModuleName,
    PreprocessingRecord,
    SharedRecord,
    Size,
    TaskName,
    Time,
    TrainingRecord,
    VersionName,
    slug_problem,
    utc_now,
)

__all__ = [
    "FORMAT_VERSION",
    "HEADER_BYTES",
    "MAX_MANIFEST_BYTES",
    "BackboneRecord",
    "Dtype",
    "FileRecord",
    "LayerRecord",
    "Manifest",
    "ManifestDraft",
    "PreprocessingRecord",
    "SharedRecord",
    "TrainingRecord",
    "first_problem",
    "slug_problem",
    "utc_now",
]

FORMAT_VERSION: Literal[1] = 1
MAX_MANIFEST_BYTES = 16 * 2**20
HEADER_BYTES = 64 * 2**10
_HEADER_BYTES_OF_TENSOR = 512
"""An adapter is its numbers and at most one of these more: the first, or this for each tensor."""
_ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class ManifestDraft(Record):
    """What the writer of an artifact knows before it is stored."""

    backbone: BackboneRecord
    preprocessing: PreprocessingRecord
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=2**20)]
    """Class names; row i of the classifier is class i."""
    layers: dict[ModuleName, LayerRecord]
    """Every adapted layer, in the backbone's module order."""
    training: TrainingRecord
    shared: SharedRecord | None = None
    """What stands for the supports of layers that share factors; left out where none do."""

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

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that is stored for supports."""
        if self.shared is None:
            return self.support_shapes()
        return shared_shapes(self.shared.kind, self.shared.rank, self.shapes())

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
        if self.shared is not None:
            self.stored_shapes()
            if set(self.subnet().values()) != {shared_forms(self.shared.rank)}:
                raise ValueError(
                    f"layers that share factors must all have B=lora:{self.shared.rank} and no "
                    "other path"
                )
        for layer in self.layers:
            if self.is_head(f"{layer}."):
                raise ValueError(f"layers must not hold the classifier, got {layer!r}")
        return self


class Manifest(ManifestDraft):
    """All of manifest.json."""

    format_version: Literal[1]
    task: TaskName
    version: VersionName
    created: Time
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
        return {**self.stored_shapes(), **self.head}

    def to_json(self) -> bytes:
        """The bytes of manifest.json; the same manifest always gives the same bytes."""
        fields = self._stated()
        first = {name: fields.pop(name) for name in _HEADLINE}
        text = json.dumps({**first, **fields}, indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    def digest(self) -> str:
        """sha256 of what is stated here, as the adapter's header repeats it (docs/format.md).

        Over every field but two: ``adapter``, which states the sha256 of the file that holds this
        digest, and ``training.data``, which may name a folder of this machine and is blanked
        where an artifact is shared.
        """
        fields = self._stated()
        del fields["adapter"], fields["training"]["data"]
        # The one object whose order says something, that of the modules.
        fields["layers"] = list(fields["layers"].items())
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _stated(self) -> dict[str, Any]:
        fields = self.model_dump(mode="json")
        if self.shared is None:  # as before there was such a thing
            del fields["shared"]
        return fields

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
        return parse_record(cls, data, where)

    @model_validator(mode="after")
    def _counts(self) -> Manifest:
        supports = self.stored_shapes()
        n_supports = _count(supports.values())
        n_head = _count(self.head.values())
        for field, stated, found in (
            ("n_parameters", self.n_parameters, n_supports),
            ("n_head_parameters", self.n_head_parameters, n_head),
        ):
            if stated != found:
                raise ValueError(f"{field} must be {found}, the sum over its tensors, got {stated}")
        self._require_head()
        data_bytes = _ITEM_BYTES[self.dtype] * (n_supports + n_head)
        n_tensors = len(supports) + len(self.head)
        most = data_bytes + max(HEADER_BYTES, _HEADER_BYTES_OF_TENSOR * n_tensors)
        if not data_bytes <= self.adapter.size_bytes <= most:
            raise ValueError(
                f"adapter.size_bytes must be {data_bytes}, the bytes of its tensors, to {most}, "
                f"got {self.adapter.size_bytes}"
            )
        return self

    def _require_head(self) -> None:
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
    stated = raw["format_version"]
    if type(stated) is not int or stated != FORMAT_VERSION:  # True and 1.0 equal 1
        raise ArtifactError(
            f"{where}: format_version must be {FORMAT_VERSION}, the only one this release reads, "
            f"got {short(stated)}. Use the glora-deploy that wrote it, or a newer one."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {short(key)} must occur once")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {text}")
