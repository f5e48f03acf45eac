"""What the store keeps of a training, and whether it can, found before the first epoch."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import save

from glora_deploy.backbones.load import Backbone
from glora_deploy.data.check import SKIPPED_IMAGES
from glora_deploy.data.load import TaskData
from glora_deploy.errors import DataError
from glora_deploy.store.artifact import read_artifact, write_artifact
from glora_deploy.store.companions import RUN_SETTINGS, require_companions
from glora_deploy.store.history import (
    HISTORY_VERSION,
    CandidateRecord,
    History,
    SearchRecord,
)
from glora_deploy.store.manifest import LayerRecord, ManifestDraft, TrainingRecord, first_problem
from glora_deploy.store.run_settings import write_settings
from glora_deploy.strict_record import short

from .config import RunConfig
from .job import Trained
from .method import WholeMethod
from .run_settings import settings_of
from .search import Scored
from .setting_error import SettingError


def tensors_of(trained: Trained) -> dict[str, NDArray[np.float32]]:
    """The tensors of a delta: those of its subnet, and the classifier."""
    tensors = {
        **trained.adapted.stored(trained.subnet),
        **trained.adapted.head(),
    }
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def checkpoint_of(trained: Trained) -> bytes | None:
    """Timm's state dict as a safetensors file, where the network's own weights were trained."""
    if not isinstance(trained.method, WholeMethod):
        return None
    state = trained.network.state_dict()
    return save({name: tensor.detach().cpu().numpy() for name, tensor in state.items()})


def draft_of(
    trained: Trained,
    config: RunConfig,
    backbone: Backbone,
    data: TaskData,
    device: torch.device,
    *,
    test_accuracy: float,
    skipped: Mapping[str, list[int]],
) -> ManifestDraft:
    """What the manifest says of a training.

    Args:
        trained: The training.
        config: What was asked for.
        backbone: What it was trained on.
        data: Its images, without those left out.
        device: Where it was computed.
        test_accuracy: Top-1 on the test split, 0 to 1.
        skipped: Places of the images left out, by split.

    Raises:
        ValidationError: If something in it breaks a rule of the format.
    """
    return ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=data.classes,
        layers={
            layer: LayerRecord.of(shape, trained.subnet[layer])
            for layer, shape in trained.adapted.shapes.items()
        },
        shared=trained.adapted.shared,
        training=TrainingRecord(
            method=trained.method.name,
            schedule=trained.config.schedule,
            data=config.data,
            splits_sha256=data.splits_sha256,
            seed=config.seed,
            epochs=trained.config.epochs,
            seconds=trained.train_s,
            device=device.type,
            versions=_versions(),
            val_accuracy=trained.val_accuracy,
            test_accuracy=test_accuracy,
            settings=_settings(config, trained, skipped, n_train=len(data.train)),
        ),
    )


def history_of(trained: Trained) -> History:
    """How a training went."""
    return History(
        history_version=HISTORY_VERSION,
        stages=trained.stages,
        search=_search_of(trained),
        cost=trained.cost,
    )


def _search_of(trained: Trained) -> SearchRecord | None:
    if trained.search is None:
        return None
    return SearchRecord(
        seconds=trained.search_s,
        generations=tuple(
            tuple(_candidate(each) for each in generation)
            for generation in trained.search.generations
        ),
        chosen=_candidate(trained.search.best),
    )


def _candidate(scored: Scored[Any]) -> CandidateRecord:
    return CandidateRecord(
        n_parameters=scored.n_parameters, val_accuracy=scored.fitness, whole=scored.whole
    )


def require_storable(
    untrained: Trained,
    config: RunConfig,
    backbone: Backbone,
    data: TaskData,
    device: torch.device,
) -> None:
    """Check every rule of the format now, by writing the untrained delta to a temporary folder.

    What lies beside a version must be within its limits, too.

    Raises:
        DataError: If a class has a name that a manifest cannot hold.
        SettingError: If the data spec is one.
        ValueError: If any other rule is broken; states it.
        ArtifactError: If the manifest is larger than readers take.
    """
    try:
        draft = draft_of(untrained, config, backbone, data, device, test_accuracy=0.0, skipped={})
    except ValidationError as error:
        raise _refusal(error, config, data) from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"{data.spec}: names of classes and images must be UTF-8, got "
            f"{short(error.object.strip())}. Rename it."
        ) from error
    require_companions({RUN_SETTINGS: write_settings(settings_of(untrained, config))})
    with TemporaryDirectory(prefix="glora-") as name:
        folder = Path(name)
        write_artifact(
            folder,
            draft,
            tensors_of(untrained),
            task=config.task,
            version=config.version or "v1",
        )
        read_artifact(folder)


def _refusal(error: ValidationError, config: RunConfig, data: TaskData) -> Exception:
    """A broken rule in the words of who gave the value."""
    match (error.title, *error.errors(include_url=False)[0]["loc"]):
        case ("ManifestDraft", "labels", int(index), *_):
            return DataError(
                f"{data.spec}: the name of class {index} must be 1 to 200 characters of UTF-8 on "
                f"one line, got {short(data.classes[index])}. Rename its folder, or its line in "
                "classes.txt."
            )
        case ("TrainingRecord", "data", *_):
            return SettingError(
                "data must be 1 to 1000 characters of UTF-8 on one line, got "
                f"{short(config.data)}. Rename the folder, or give it through a link.",
                "data",
            )
    return ValueError(f"{config.task}: {first_problem(error)}")


def _settings(
    config: RunConfig, trained: Trained, skipped: Mapping[str, list[int]], *, n_train: int
) -> dict[str, Any]:
    train = asdict(trained.config)
    settings: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in train.items()
    }
    for elsewhere in ("schedule", "epochs", "checkpoint_every"):
        del settings[elsewhere]
    settings["batch_size"] = min(settings["batch_size"], n_train)
    if not trained.method.searches:
        del settings["supernet_share"]  # of no effect
        if trained.method.rank is None:
            del settings["ranks"]
    if settings["scale"] is None:
        del settings["scale"]
    if trained.search is not None:
        assert config.search is not None
        settings["search"] = asdict(config.search)
        settings["search_seconds"] = trained.search_s
        settings["search_accuracy"] = trained.search.best.fitness
        settings["weights"] = "as searched" if trained.as_searched else "last epoch"
        settings["n_evaluated"] = trained.search.n_evaluated
        settings["retrain"] = config.retrain
    if skipped:
        settings[SKIPPED_IMAGES] = dict(skipped)
    for allowed in ("allow_duplicates", "allow_empty_classes"):
        if getattr(config, allowed):
            settings[allowed] = True
    return settings


def _versions() -> dict[str, str]:
    packages = ("glora-deploy", "torch", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
