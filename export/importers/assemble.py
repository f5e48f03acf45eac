"""What every import ends in: supports on the layers of one backbone, a classifier, an artifact.

Foreign adapters come in parts. A part may be a whole layer or some rows of one, as where a library
keeps query, key and value apart and timm stacks them in one ``qkv``. Parts are float64; the result
is rounded once, to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import BackboneMismatchError
from glora_deploy.glora.forms import LayerForms, LayerShape, Support
from glora_deploy.glora.layer import layer_shape
from glora_deploy.glora.support_value import factors_of, value_of
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.manifest import LayerRecord, ManifestDraft
from glora_deploy.store.manifest_fields import Label, TrainingRecord
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.store.store import ArtifactStore
from glora_deploy.strict_record import short

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Imported:
    """A foreign adapter as a delta of one backbone."""

    tensors: dict[str, NDArray[np.float32]]
    """``layer.A_d``-style supports, and the classifier under its own names."""
    layers: dict[str, LayerRecord]
    """Every adapted layer, in the backbone's module order."""
    origin: dict[str, JsonValue]
    """Where it came from, for the manifest."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


@dataclass(frozen=True, slots=True)
class Place:
    """The rows of a layer that a part adapts: the ``index``-th of ``count`` equal shares."""

    layer: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """How the rows of one place change."""

    supports: Mapping[str, Array] = field(default_factory=dict)
    """``A_d``, ``A_u``, ``B``, ... shaped as ``glora_deploy.glora.forms`` says, for these rows."""
    bias: Array | None = None
    """A trained bias that takes the place of the frozen one before the supports act on it."""


class Target:
    """The layers of a backbone that an import may land on, and their frozen tensors.

    Args:
        backbone: The network the foreign adapter was trained on.
        n_classes: Of the task.
    """

    def __init__(self, backbone: Backbone, n_classes: int) -> None:
        model = backbone.build(n_classes)
        self.backbone = backbone
        self.shapes: dict[str, LayerShape] = {
            name: shape
            for name, module in model.named_modules()
            if name not in backbone.classifier and (shape := layer_shape(module)) is not None
        }
        self.batch_norms = {
            name: module.eps
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and f"{name}.running_var" in backbone.tensors
        }
        """What each BatchNorm with running statistics adds to its variance."""
        self.head = {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name not in backbone.tensors
        }

    def rows(self, place: Place) -> int:
        """How many rows a place has."""
        return self.shapes[place.layer].d_out // place.count

    def weight(self, layer: str) -> Array:
        """Frozen weight, flattened to ``(d_out, d_in)``."""
        tensor = self.backbone.tensors[f"{layer}.weight"].numpy().astype(np.float64)
        return tensor.reshape(len(tensor), -1)

    def bias(self, layer: str) -> Array:
        """Frozen bias ``(d_out,)``; the layer has one."""
        return self.backbone.tensors[f"{layer}.bias"].numpy().astype(np.float64)


def assemble(
    target: Target,
    parts: Mapping[Place, Part],
    head: Mapping[str, NDArray[Any]],
    *,
    where: str,
    origin: Mapping[str, JsonValue],
    notes: Sequence[str] = (),
) -> Imported:
    """Join the parts of each layer and check everything against the backbone.

    Args:
        target: The backbone's layers.
        parts: By place; places of one layer have the same count.
        head: The classifier.
        where: Named in errors.
        origin: Kept in the result.
        notes: Kept in the result.

    Raises:
        BackboneMismatchError: If a tensor does not fit its layer, or the classifier differs.
    """
    _require_head(target, head, where)
    layers: dict[str, LayerRecord] = {}
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer, shape in target.shapes.items():
        mine = {place: part for place, part in parts.items() if place.layer == layer}
        for place, part in mine.items():
            _require_fit(target, place, part, where)
        supports = _join(target, layer, mine)
        if supports:
            layers[layer] = LayerRecord.of(shape, LayerForms.of(_shapes(supports)))
            tensors |= {f"{layer}.{name}": _rounded(value) for name, value in supports.items()}
    tensors |= {name: _rounded(value) for name, value in head.items()}
    return Imported(tensors, layers, dict(origin), tuple(notes))


def read_head(path: Path, backbone: Backbone) -> dict[str, NDArray[Any]]:
    """The classifier's tensors out of a safetensors file; others in it are ignored.

    They may all lie behind one prefix, as ``timm_model.head.weight`` does in a file of
    transformers.

    Raises:
        ArtifactError: If the file is missing or damaged.
        BackboneMismatchError: If it holds none, or several.
    """
    tensors = map_tensors(path)
    weight = f"{backbone.classifier[0]}.weight"
    prefixes = [n.removesuffix(weight) for n in tensors if f".{n}".endswith(f".{weight}")]
    if not prefixes:
        raise BackboneMismatchError(
            f"{path}: must hold the classifier {', '.join(backbone.classifier)}, it does not"
        )
    if len(prefixes) > 1 and "" not in prefixes:
        raise BackboneMismatchError(
            f"{path}: must hold the classifier once, got it behind {', '.join(sorted(prefixes))}. "
            "Give a file with one."
        )
    prefix = "" if "" in prefixes else prefixes[0]
    inside = tuple(f"{prefix}{name}." for name in backbone.classifier)
    return {
        name.removeprefix(prefix): np.array(tensor)
        for name, tensor in tensors.items()
        if name.startswith(inside)
    }


def store_import(
    store: ArtifactStore,
    backbone: Backbone,
    imported: Imported,
    *,
    task: str,
    labels: Sequence[str] | None = None,
    make_current: bool = True,
) -> Artifact:
    """Keep an import as a new version of a task, and its backbone beside it.

    Args:
        store: Gets both.
        backbone: The one it was imported for.
        imported: The delta.
        task: Slug of the task.
        labels: Name of each class; ``class 0``, ``class 1``, ... by default.
        make_current: Whether it answers from now on.

    Raises:
        StoreError: If the task is no slug, or no space is left.
        ValueError: If there is not one label for each row of the classifier, or one cannot be
            stored; names it.
        NonFiniteError: If a tensor holds NaN or infinity.
    """
    n_classes = len(imported.tensors[f"{backbone.classifier[0]}.weight"])
    if labels is None:
        labels = [f"class {index}" for index in range(n_classes)]
    _require_labels(labels, n_classes)
    draft = ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=tuple(labels),
        layers=imported.layers,
        training=TrainingRecord(
            method="imported",
            schedule=None,
            data=None,
            splits_sha256=None,
            seed=None,
            epochs=None,
            seconds=None,
            device=None,
            versions={},
            val_accuracy=None,
            test_accuracy=None,
            settings=imported.origin,
        ),
    )
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())
    return store.put(task, imported.tensors, draft, make_current=make_current)


def _join(target: Target, layer: str, parts: Mapping[Place, Part]) -> dict[str, Array]:
    """The supports of a whole layer."""
    if all(place.count == 1 for place in parts):
        return {
            name: value
            for place, part in parts.items()
            for name, value in _with_bias(target, place, part).items()
        }
    joined: dict[str, Array] = {}
    for support in ("A", "B"):
        joined |= _stack(target, layer, parts, support)
    # Rows with C of their own have no common C: what it does to the bias becomes part of E.
    if target.shapes[layer].bias:
        shift = np.zeros(target.shapes[layer].d_out)
        for place, part in parts.items():
            shift[_slice(target, place)] = _bias_shift(target, place, part)
        if shift.any():
            joined["E"] = shift
    return joined


def _with_bias(target: Target, place: Place, part: Part) -> dict[str, Array]:
    """A whole layer's supports, with the change of a replaced bias in E."""
    supports = dict(part.supports)
    if part.bias is not None:
        change = part.bias - target.bias(place.layer)
        if change.any():
            supports["E"] = supports.get("E", 0) + change * (1 + supports.get("D", 0))
    return supports


def _bias_shift(target: Target, place: Place, part: Part) -> Array:
    """What all of a part does to the frozen bias of its rows, ``(rows,)``."""
    rows = _slice(target, place)
    frozen = target.bias(place.layer)[rows]
    trained = frozen if part.bias is None else part.bias
    shift = trained * (1 + part.supports.get("D", 0)) + part.supports.get("E", 0) - frozen
    if (c := value_of(part.supports, "C")) is not None:
        shift = shift + (target.weight(place.layer)[rows] @ c).squeeze(1)
    return np.asarray(shift)


def _stack(
    target: Target, layer: str, parts: Mapping[Place, Part], support: Support
) -> dict[str, Array]:
    """A or B of a whole layer, from those of its parts; rows without one get zeros."""
    shape = target.shapes[layer]
    held = {
        place: factors
        for place, part in parts.items()
        if (factors := factors_of(part.supports, support)) is not None
    }
    if not held:
        return {}
    if all(up is None for _, up in held.values()):
        column = np.zeros((shape.d_out, 1))
        for place, (down, _) in held.items():
            column[_slice(target, place)] = down
        return {support: column}
    downs, ups = [], []
    for place, (down, up) in held.items():
        tall = np.zeros((shape.d_out, down.shape[1]))
        tall[_slice(target, place)] = down
        downs.append(tall)
        ups.append(np.ones((1, shape.d_in)) if up is None else up)
    return {f"{support}_d": np.hstack(downs), f"{support}_u": np.vstack(ups)}


def _slice(target: Target, place: Place) -> slice:
    rows = target.rows(place)
    return slice(place.index * rows, (place.index + 1) * rows)


def _shapes(supports: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in supports.items()}


def _require_labels(labels: Sequence[str], n_classes: int) -> None:
    if len(labels) != n_classes:
        raise ValueError(
            f"labels must have one entry for each of the {n_classes} classes, got {len(labels)}"
        )
    for index, label in enumerate(labels):
        try:
            TypeAdapter(Label).validate_python(label)
        except ValidationError as error:
            raise ValueError(
                f"labels: the name of class {index} must be 1 to 200 characters of UTF-8 on one "
                f"line, got {short(label)}"
            ) from error


def _require_fit(target: Target, place: Place, part: Part, where: str) -> None:
    shape = target.shapes[place.layer]
    rows = target.rows(place)
    own = LayerShape(kind=shape.kind, d_out=rows, d_in=shape.d_in, bias=shape.bias)
    try:
        expected = LayerForms.of(_shapes(part.supports)).tensor_shapes(own)
    except ValueError as error:
        raise BackboneMismatchError(f"{where}: {place.layer}: {error}") from error
    if part.bias is not None:
        if not shape.bias:
            raise BackboneMismatchError(
                f"{where}: {place.layer}: has a trained bias, the backbone's layer has no bias"
            )
        expected["bias"] = (rows,)
    for name, value in (*part.supports.items(), ("bias", part.bias)):
        if value is not None and value.shape != expected[name]:
            raise BackboneMismatchError(
                f"{where}: {place.layer}: {name} must have shape {expected[name]} to fit the "
                f"backbone's ({shape.d_out}, {shape.d_in}), got {value.shape}. "
                "Give the backbone it was trained on."
            )


def _require_head(target: Target, head: Mapping[str, NDArray[Any]], where: str) -> None:
    found = {name: value.shape for name, value in head.items()}
    if found != target.head:
        odd = sorted(found.items() ^ target.head.items())[0][0]
        raise BackboneMismatchError(
            f"{where}: the classifier's {odd} is {found.get(odd, 'missing')}, "
            f"the backbone's {target.head.get(odd, 'missing')}"
        )


def _rounded(value: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(value, np.float32)
