"""Evaluate one version of a task, or any classifier, on labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..store.artifact import Artifact
from ..store.manifest import Manifest
from ..store.reader import StoreReader
from ..store.store import ArtifactStore
from ..wording import count_of, some_of
from .choices import Device, Split
from .labelled_images import LabelledImages, load_images
from .metrics import Metrics, metrics_of
from .predictions import BATCH_SIZE, Classifier, Predictions, predict

OnProgress = Callable[[int, int], None]
"""Told how many images of how many are done."""

OpenNetwork = Callable[[StoreReader, Artifact], tuple[Classifier, str]]
"""Gives the network that answers for a version, and what to call it."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Evaluation:
    """What one network answered to labelled images, and what that is worth."""

    network: str
    """What computed: ``delta`` merged with torch, ``onnx``, or what the caller called it."""
    task: str
    version: str
    delta_sha256: str
    """Of the adapter.safetensors that answered."""
    precision: str
    """Of the weights."""
    data: str
    """The text that the images were loaded by."""
    split: Split
    splits_sha256: str
    """Of the whole data set: the same for the same images, labels and splits."""
    recorded_accuracy: float | None
    """What the training measured, where it was on these very images; 0 to 1."""
    seconds: float
    """For reading, preprocessing and answering all images."""
    metrics: Metrics
    predictions: Predictions
    notes: tuple[str, ...]
    """What whoever reads the figures should know."""

    @property
    def images_per_second(self) -> float:
        """Images answered per second, reading and preprocessing included."""
        return self.metrics.n_images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON values: everything but the predictions."""
        return {
            "task": self.task,
            "version": self.version,
            "delta_sha256": self.delta_sha256,
            "network": self.network,
            "precision": self.precision,
            "data": self.data,
            "split": self.split,
            "splits_sha256": self.splits_sha256,
            "recorded_accuracy": self.recorded_accuracy,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "skipped": list(self.predictions.skipped),
            "notes": list(self.notes),
            **self.metrics.to_dict(),
        }


def evaluate(
    task: str,
    version: str | None = None,
    *,
    store: Path | str = "artifacts",
    network: Classifier | None = None,
    network_name: str = "onnx",
    open_network: OpenNetwork | None = None,
    data: str | None = None,
    split: Split = "test",
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    device: Device = "auto",
    report: OnProgress = lambda done, total: None,
) -> Evaluation:
    """Evaluate a version of a task, by default on the test images that its training recorded.

    Args:
        task: Its name in the store.
        version: The current one by default.
        store: Folder of the store.
        network: What answers, such as ``serving.Predictor.from_store(...)``.
        network_name: What to call a ``network`` that is given.
        open_network: What gives the network where none is given, once the data are found to be
            there; by default the delta answers, merged into its backbone with torch.
        data: Built-in name, ``folder:PATH``, ``lists:PATH`` or ``vtab:PATH``, classes matched by
            name; by default the data that the manifest records.
        split: ``test``, ``val`` or ``train`` of the data, or ``all`` of their images.
        batch_size: Images computed at once.
        skip_unreadable: Leave images out that cannot be read.
        device: Where that delta computes; ``auto`` takes CUDA where there is one.
        report: Told how many images of how many are done.

    Raises:
        StoreError: If store, task, version or backbone are not there.
        ArtifactError: If a stored file is not what its manifest says.
        DataError: If the data or an image cannot be read, or there are classes that the network
            does not know; lists these.
        MissingDependencyError: If an optional package is needed.
        NonFiniteError: If the network answers with NaN or infinity.
    """
    opened = ArtifactStore.open(store)
    artifact = opened.get(task, version)
    images = load_images(artifact.manifest, data=data, split=split)
    images.targets(artifact.manifest.labels if network is None else network.labels)
    if network is None:
        network, network_name = (open_network or partial(open_delta, device=device))(
            opened, artifact
        )
    return evaluate_on(
        network,
        images,
        name=network_name,
        manifest=artifact.manifest,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        report=report,
    )


def open_delta(
    store: StoreReader, artifact: Artifact, *, device: Device = "auto"
) -> tuple[Classifier, str]:
    """A version's delta, merged into its backbone with torch, which is imported now.

    Raises:
        GloraDeployError: As ``DeltaNetwork``.
    """
    from .delta_network import DeltaNetwork

    return DeltaNetwork(store, artifact, device=device), "delta"


def evaluate_on(
    network: Classifier,
    images: LabelledImages,
    *,
    name: str,
    manifest: Manifest | None = None,
    batch_size: int = BATCH_SIZE,
    skip_unreadable: bool = False,
    report: OnProgress = lambda done, total: None,
) -> Evaluation:
    """Evaluate any classifier on images from ``load_images``.

    Args:
        network: What answers.
        images: Their classes are matched with the network's by name.
        name: What to call the network, such as ``onnx``.
        manifest: Of the version that the network is of, if it is at hand.
        batch_size: Images computed at once.
        skip_unreadable: Leave images out that cannot be read.
        report: Told how many images of how many are done.

    Raises:
        DataError: If an image cannot be read, or there are classes that the network does not
            know; lists these.
        NonFiniteError: If the network answers with NaN or infinity.
    """
    targets = images.targets(network.labels)
    start = time.perf_counter()
    predictions = predict(
        network,
        images.images,
        targets,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        report=report,
    )
    seconds = time.perf_counter() - start
    notes = images.notes
    if manifest and network.delta_sha256 != manifest.adapter.sha256:
        notes += (
            f"the network is of {network.task}/{network.version} (delta "
            f"{network.delta_sha256[:12]}..), not of {manifest.task}/{manifest.version} "
            f"({manifest.adapter.sha256[:12]}..), whose data these are",
        )
        manifest = None
    if skipped := predictions.skipped:
        notes += (f"left out {count_of(len(skipped), 'unreadable image')}: {some_of(skipped)}",)
    return Evaluation(
        network=name,
        task=network.task,
        version=network.version,
        delta_sha256=network.delta_sha256,
        precision=network.precision,
        data=images.data,
        split=images.split,
        splits_sha256=images.splits_sha256,
        recorded_accuracy=_recorded(manifest, images, n_skipped=len(skipped)),
        seconds=seconds,
        metrics=metrics_of(predictions.logits, predictions.targets, predictions.labels),
        predictions=predictions,
        notes=notes,
    )


def _recorded(manifest: Manifest | None, images: LabelledImages, *, n_skipped: int) -> float | None:
    """What the training measured on these very images; on others it says nothing of them.

    The validation accuracy is that of the weights that were chosen by it, which may have been
    trained further since.
    """
    if manifest is None or images.split != "test" or n_skipped:
        return None
    if manifest.training.splits_sha256 != images.splits_sha256:
        return None
    return manifest.training.test_accuracy
