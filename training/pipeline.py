"""One task from images to stored deltas."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glora_deploy.artifact import Artifact
from glora_deploy.backbone import Backbone, load_backbone
from glora_deploy.data import ImageSet, TaskData, load_task
from glora_deploy.data_check import SKIPPED_IMAGES, CheckedData, check_data
from glora_deploy.errors import StoreError
from glora_deploy.inject import extract_supports
from glora_deploy.manifest import (
    LayerRecord,
    ManifestDraft,
    TrainingRecord,
)
from glora_deploy.store import ArtifactStore
from glora_deploy.store_read import require_slug

from .config import RunConfig
from .device import choose_device
from .evaluate import accuracies
from .methods import Job, Report, Trained, require_trainable, train_glora, train_lora
from .pixels import Pixels
from .run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stored delta and what it was measured to do."""

    artifact: Artifact
    method: str
    n_parameters: int
    """Numbers stored, classifier excluded."""
    val_accuracy: float
    """Top-1 on the validation split, 0 to 1."""
    test_accuracy: float
    """Top-1 on the test split, 0 to 1."""
    train_s: float
    """Seconds of training."""
    search_s: float
    """Seconds of search."""


def run(
    config: RunConfig,
    root: Path,
    report: Report,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Load, train, search, test once, store.

    Weights are trained on the training split and chosen on the validation split; the test split
    is read once, after everything is decided. Whatever is wrong with the request is found before
    the store is touched.

    Args:
        config: What to do.
        root: Folder of the store; made if missing.
        report: Told of the progress.
        tell: Given lines for a person: how the data was read, and what is odd about it.

    Returns:
        The stored deltas: the one asked for, which is now current, then LoRA's if compared.

    Raises:
        GloraDeployError: If backbone, data, store or weights are not as they must be.
        ValueError: If settings do not go together, or training cannot start with them.
    """
    _require_names(config, root)
    device = choose_device(config.device)
    backbone = load_backbone(
        config.backbone, checkpoint=config.weights, input_size=config.input_size
    )
    data = load_task(config.data, seed=config.seed)
    require_trainable(config, backbone, data.n_classes)
    checked = _check(config, data, report, tell)
    data = checked.data
    store = ArtifactStore.create(root)
    identity = _identity(config, backbone, data.splits_sha256, device)
    folder = RunFolder(store.root, config.task, identity, resume=config.resume)
    train, val = (
        _read(images, name, backbone, device, report)
        for name, images in (("train", data.train), ("val", data.val))
    )
    job = Job(config, backbone, data, train, val, device, folder, report)
    trained = [train_glora(job) if config.method == "glora" else train_lora(job)]
    if config.compare_lora:
        trained.append(train_lora(job, trained[0].train_s + trained[0].search_s))
    test = Pixels(data.test, backbone.preprocessing, device, cache_bytes=0)
    tested = accuracies(
        [each.network for each in trained],
        test,
        report=lambda n: report("test", n, len(test), ""),
    )
    outcomes = _store(job, store, trained, tested, checked.skipped)
    folder.remove()
    return outcomes


def _check(
    config: RunConfig, data: TaskData, report: Report, tell: Callable[[str], None]
) -> CheckedData:
    for note in data.notes:
        tell(note)
    checked = check_data(
        data,
        skip_unreadable=config.skip_unreadable,
        allow_duplicates=config.allow_duplicates,
        allow_empty_classes=config.allow_empty_classes,
        report=lambda done, total: report("check images", done, total, ""),
    )
    for note in checked.notes:
        tell(note)
    return checked


def _read(
    images: ImageSet, name: str, backbone: Backbone, device: torch.device, report: Report
) -> Pixels:
    def tell(n_read: int) -> None:
        report(f"read {name}", n_read, len(images), "")

    return Pixels(images, backbone.preprocessing, device, report=tell)


def _require_names(config: RunConfig, root: Path) -> None:
    require_slug("task", config.task)
    if config.version is not None:
        require_slug("version", config.version)
        place = root / config.task / config.version
        if place.exists():
            raise StoreError(
                f"{place}: the version must be new, it exists. Give another one, or remove it."
            )


def _identity(
    config: RunConfig, backbone: Backbone, splits_sha256: str, device: torch.device
) -> dict[str, Any]:
    """What an interrupted run and its continuation must share to give the same bits."""
    asked = asdict(config)
    for free in ("task", "resume", "version", "weights", "device"):
        del asked[free]
    for seen_in_splits in ("skip_unreadable", "allow_duplicates", "allow_empty_classes"):
        del asked[seen_in_splits]
    train = {f"train.{name}": value for name, value in asked.pop("train").items()}
    search = {f"search.{name}": value for name, value in asked.pop("search").items()}
    measured = {
        "backbone fingerprint": backbone.fingerprint,
        "splits": splits_sha256,
        "device": device.type,
    }
    return {**asked, **train, **search, **measured}


def _store(
    job: Job,
    store: ArtifactStore,
    trained: list[Trained],
    tested: list[float],
    skipped: dict[str, list[int]],
) -> list[Outcome]:
    backbone, config = job.backbone, job.config
    store.put_backbone(
        backbone.fingerprint,
        {name: tensor.numpy() for name, tensor in backbone.tensors.items()},
        backbone.config(),
    )
    outcomes = []
    for i, (each, test_accuracy) in enumerate(zip(trained, tested, strict=True)):
        tensors = {**extract_supports(each.supernet.model, each.subnet), **each.supernet.head()}
        artifact = store.put(
            config.task,
            {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
            _draft(job, each, test_accuracy, skipped),
            version=config.version if i == 0 else None,
            make_current=i == 0,
        )
        n_parameters = each.subnet.n_parameters(each.supernet.space.shapes)
        outcomes.append(
            Outcome(
                artifact,
                each.method,
                n_parameters,
                each.val_accuracy,
                test_accuracy,
                each.train_s,
                each.search_s,
            )
        )
    return outcomes


def _draft(
    job: Job, trained: Trained, test_accuracy: float, skipped: dict[str, list[int]]
) -> ManifestDraft:
    backbone, config = job.backbone, job.config
    return ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=job.data.classes,
        layers={
            layer: LayerRecord.of(shape, trained.subnet[layer])
            for layer, shape in trained.supernet.space.shapes.items()
        },
        training=TrainingRecord(
            method=trained.method,
            schedule=trained.config.schedule,
            data=config.data,
            splits_sha256=job.data.splits_sha256,
            seed=config.seed,
            epochs=trained.config.epochs,
            seconds=trained.train_s,
            device=job.device.type,
            versions=_versions(),
            val_accuracy=trained.val_accuracy,
            test_accuracy=test_accuracy,
            settings=_settings(config, trained, skipped),
        ),
    )


def _settings(config: RunConfig, trained: Trained, skipped: dict[str, list[int]]) -> dict[str, Any]:
    train = asdict(trained.config)
    settings: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in train.items()
    }
    for elsewhere in ("schedule", "epochs", "checkpoint_every"):
        del settings[elsewhere]
    if trained.search is not None:
        settings["search"] = asdict(config.search)
        settings["search_seconds"] = trained.search_s
        settings["search_accuracy"] = trained.search.best.fitness
        settings["n_evaluated"] = trained.search.n_evaluated
        settings["retrain"] = config.retrain
    if skipped:
        settings[SKIPPED_IMAGES] = skipped
    for allowed in ("allow_duplicates", "allow_empty_classes"):
        if getattr(config, allowed):
            settings[allowed] = True
    return settings


def _versions() -> dict[str, str]:
    packages = ("glora-deploy", "torch", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
