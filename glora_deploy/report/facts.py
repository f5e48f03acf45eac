"""What stands above and below the figures: the main numbers, and how a version was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..store.manifest import Manifest
from ..wording import count_of
from .blocks import Tile, percent

if TYPE_CHECKING:
    from ..evaluation.evaluate_version import Evaluation


def about(manifest: Manifest) -> str:
    """One line on a version."""
    training = manifest.training
    return (
        f"{count_of(len(manifest.labels), 'class')} on {_backbone(manifest)}, method "
        f"{training.method}, stored {manifest.created[:10]}"
    )


def _backbone(manifest: Manifest) -> str:
    """What people call the backbone: with its weights, where these have a name."""
    kind, _, name = manifest.backbone.source.partition(":")
    return name if kind in ("timm", "packaged") else manifest.backbone.name


def tiles(manifest: Manifest, evaluation: Evaluation | None) -> tuple[Tile, ...]:
    """The main numbers; the accuracy is measured now where there are images."""
    training = manifest.training
    found = []
    if evaluation is not None:
        low, high = evaluation.metrics.interval
        found.append(
            Tile(
                name=f"{evaluation.split} accuracy",
                value=percent(evaluation.metrics.accuracy),
                note=f"{low:.1%} to {high:.1%} at 95%, n = {evaluation.metrics.n_images:,}",
            )
        )
    elif training.test_accuracy is not None:
        found.append(
            Tile(
                name="test accuracy",
                value=percent(training.test_accuracy),
                note="as the training recorded it",
            )
        )
    if training.val_accuracy is not None:
        found.append(
            Tile(
                name="validation accuracy",
                value=percent(training.val_accuracy),
                note="chose the subnet" if "search" in training.settings else "",
            )
        )
    found.append(
        Tile(
            name="parameters",
            value=f"{manifest.n_parameters:,}",
            note=f"and {manifest.n_head_parameters:,} of the classifier",
        )
    )
    found.append(
        Tile(
            name="delta",
            value=f"{manifest.adapter.size_bytes / 1000:,.0f} kB",
            note=f"in {manifest.dtype}",
        )
    )
    if training.seconds is not None:
        search = training.settings.get("search_seconds")
        note = f"and {search:,.0f} s of search" if isinstance(search, int | float) else ""
        found.append(Tile(name="training", value=_time(training.seconds), note=note))
    return tuple(found)


def facts(manifest: Manifest, evaluation: Evaluation | None) -> tuple[tuple[str, str], ...]:
    """How a version was made, name by value; what is not known is left out."""
    training, backbone = manifest.training, manifest.backbone
    height, width = manifest.preprocessing.size
    rows = [
        ("stored", manifest.created),
        ("backbone", f"{backbone.name} from {backbone.source}, input {height} x {width}"),
        ("fingerprint", backbone.fingerprint),
        ("adapter sha256", manifest.adapter.sha256),
        ("method", training.method),
        ("schedule", training.schedule),
        ("epochs", None if training.epochs is None else f"{training.epochs:,}"),
        ("seed", None if training.seed is None else str(training.seed)),
        ("data", training.data),
        ("splits sha256", training.splits_sha256),
        ("device", training.device),
        ("versions", ", ".join(f"{name} {is_}" for name, is_ in training.versions.items())),
        ("settings", _settings(manifest)),
    ]
    if evaluation is not None:
        rows += [
            (
                "measured here",
                f"{count_of(evaluation.metrics.n_images, 'image')} of {evaluation.data}, split "
                f"{evaluation.split}, {evaluation.precision}, network {evaluation.network}",
            )
        ]
    return tuple((name, value) for name, value in rows if value)


def _settings(manifest: Manifest) -> str:
    return ", ".join(
        f"{name} {_value(value)}"
        for name, value in manifest.training.settings.items()
        if value is not None and not isinstance(value, dict)
    )


def _value(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    """A duration.

    >>> _time(42.4), _time(400), _time(40000)
    ('42 s', '6.7 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
