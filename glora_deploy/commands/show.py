"""``glora show``: one version in full."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

from ..console import one_line_errors, print_table
from ..options import JsonOption, OptionalVersionArgument, StoreOption, TaskArgument
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .exports import exports_of
from .list import percent
from .sizes import mb

if TYPE_CHECKING:
    from ..store.artifact import Artifact
    from ..store.store import ArtifactStore

_N_LABELS = 8


@examples("digits", "digits v1", "digits v1 --json")
def show(
    task: TaskArgument,
    version: OptionalVersionArgument = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """One version: what it is, how it was trained, what was exported of it.

    With --json its manifest, as stored.
    """
    from ..store.store import ArtifactStore

    with one_line_errors():
        opened = ArtifactStore.open(store)
        artifact = opened.get(task, version)
        if as_json:
            typer.echo(artifact.manifest.to_json().decode(), nl=False)
            return
        is_current = opened.current(task) == artifact.version
        title = f"{artifact.task}/{artifact.version}{', which answers' if is_current else ''}"
        rows = [row for row in _rows(opened, artifact) if row[1]]
        print_table(title, ("", ""), rows)


def _rows(store: ArtifactStore, artifact: Artifact) -> list[tuple[str, str]]:
    manifest, training = artifact.manifest, artifact.manifest.training
    labels, backbone = manifest.labels, manifest.backbone
    more = f" and {len(labels) - _N_LABELS} more" if len(labels) > _N_LABELS else ""
    settings = training.settings
    _, height, width = backbone.input_size
    searched = settings.get("search_accuracy")
    return [
        ("created", manifest.created[:19].replace("T", " ") + " UTC"),
        ("accuracy", _accuracy(training.val_accuracy, training.test_accuracy)),
        ("search accuracy", percent(searched if isinstance(searched, float) else None)),
        ("labels", f"{len(labels)}: {', '.join(labels[:_N_LABELS])}{more}"),
        ("backbone", f"{backbone.name} of {backbone.source}, {height} x {width} pixels"),
        ("parameters", f"{manifest.n_parameters:,} and {manifest.n_head_parameters:,} of the head"),
        ("delta", f"{mb(manifest.adapter.size_bytes)} MB in {manifest.dtype}"),
        ("layers", _layers(artifact)),
        ("method", f"{training.method}, {training.schedule}" if training.schedule else ""),
        ("data", training.data or ""),
        ("training", _training(artifact)),
        ("exports", "\n".join(map(str, exports_of(store, artifact))) or "none"),
        ("folder", str(artifact.path)),
    ]


def _accuracy(val: float | None, test: float | None) -> str:
    known = [("validation", val), ("test", test)]
    return ", ".join(f"{name} {percent(share)}" for name, share in known if share is not None)


def _layers(artifact: Artifact) -> str:
    """How many layers of each kind are adapted."""
    layers = artifact.manifest.layers.values()
    kinds = Counter(layer.kind for layer in layers)
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())


def _training(artifact: Artifact) -> str:
    training = artifact.manifest.training
    known = [
        (training.epochs, f"{training.epochs} epochs"),
        (training.seconds, f"{training.seconds or 0:.0f} s"),
        (training.device, f"on {training.device}"),
        (training.seed, f"seed {training.seed}"),
    ]
    return ", ".join(text for value, text in known if value is not None)
