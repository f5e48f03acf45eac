"""In what two or more versions differ: how they were trained, on what, and the forms they took."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.check import SKIPPED_IMAGES
from ..store.comparisons import ComparisonRecord
from ..store.manifest import Manifest

SUPPORTS = "ABCDE"
MAX_CLASSES_TEXT = 60

_OUTCOMES = ("search_seconds", "search_accuracy", "n_evaluated")
"""Settings of a manifest that nobody set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same for all versions."""

    what: str
    """Such as ``training.lr`` or ``blocks.*.mlp.fc1 A``."""
    values: tuple[str, ...]
    """For each version, in their order, then for what has none; empty where nothing is known."""


def differences(
    manifests: Sequence[Manifest], others: Sequence[ComparisonRecord] = ()
) -> tuple[Difference, ...]:
    """What differs, in the order of a manifest; what came out of the training is not looked at.

    Args:
        manifests: Of versions.
        others: What was trained for comparison alone: less is recorded of it, and only what is
            recorded can differ.
    """
    facts, beside = [_facts(each) for each in manifests], [_facts_of_other(each) for each in others]
    names = dict.fromkeys(name for each in (*facts, *beside) for name in each)
    found = []
    for name in names:
        values = tuple(each.get(name, "") for each in (*facts, *beside))
        compared = {each.get(name, "") for each in facts}
        compared |= {each[name] for each in beside if name in each}
        if len(compared) > 1:
            found.append(Difference(what=name, values=values))
    return tuple(found)


def _facts_of_other(other: ComparisonRecord) -> dict[str, str]:
    return {
        "method": other.method,
        "epochs": _text(other.epochs),
        "seed": _text(other.seed),
        "data": other.data,
        "backbone": other.backbone,
    }


def layer_type(layer: str) -> str:
    """The name of a layer without its place in the depth of the network.

    >>> layer_type("blocks.3.attn.qkv")
    'blocks.*.attn.qkv'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", layer)


def forms_by_type(manifest: Manifest) -> dict[str, dict[str, Counter[str]]]:
    """How many layers of each type give each support which form: type, support, form, count."""
    found: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for layer, record in manifest.layers.items():
        for support, form in record.paths.model_dump().items():
            found[layer_type(layer)][support][form] += 1
    return {name: dict(supports) for name, supports in found.items()}


def _facts(manifest: Manifest) -> dict[str, str]:
    """What was chosen for a version, as texts by name."""
    training, backbone = manifest.training, manifest.backbone
    facts: dict[str, Any] = {
        "method": training.method,
        "schedule": training.schedule,
        "epochs": training.epochs,
        "seed": training.seed,
        "data": training.data,
        "splits": _digest(training.splits_sha256),
        "classes": _labels(manifest.labels),
        "backbone": backbone.name,
        "backbone weights": f"{backbone.source} {_digest(backbone.fingerprint)}",
        **_flat("model_args", backbone.model_args),
        **_flat("preprocessing", manifest.preprocessing.model_dump()),
        "dtype": manifest.dtype,
        **_flat("", {k: v for k, v in training.settings.items() if k not in _OUTCOMES}),
        "device": training.device,
        **_flat("version of", training.versions),
    }
    for name, supports in forms_by_type(manifest).items():
        for support in SUPPORTS:
            facts[f"{name} {support}"] = _counted(supports[support])
    return {name: _text(value) for name, value in facts.items() if value is not None}


def _flat(above: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings within mappings as one, ``search.population``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        join = " " if above == "version of" else "."
        name = f"{above}{join}{key}" if above else key
        if key == SKIPPED_IMAGES and isinstance(value, dict):
            value = {split: len(places) for split, places in value.items()}
        found |= _flat(name, value) if isinstance(value, Mapping) else {name: value}
    return found


def _counted(forms: Mapping[str, int]) -> str:
    """``lora:4 x3, none x1``, the commonest first; a form that all layers take stands alone."""
    if len(forms) == 1:
        return next(iter(forms))
    ordered = sorted(forms.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{form} x{count}" for form, count in ordered)


def _labels(labels: Sequence[str]) -> str:
    """The classes in few words; two lists that are not the same never look the same."""
    text = ", ".join(labels)
    if len(text) > MAX_CLASSES_TEXT:
        digest = hashlib.sha256("\n".join(labels).encode()).hexdigest()
        text = f"{text[:MAX_CLASSES_TEXT]}... ({digest[:8]})"
    return f"{len(labels):,}: {text}"


def _digest(sha256: str | None) -> str | None:
    return None if sha256 is None else f"{sha256[:12]}.."


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
