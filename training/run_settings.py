"""The settings of a training as options of ``glora train``, to lie beside what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glora_deploy.backbones.input_size import HeightWidth
from glora_deploy.store.run_settings import Value

from .config import RunConfig

if TYPE_CHECKING:  # it brings torch
    from .job import Trained


def settings_of(trained: Trained, config: RunConfig) -> dict[str, Value]:
    """What repeats a training, by option; where the store is and what is named anew is left out.

    Args:
        trained: The training. Of a comparison this is LoRA's own, by itself.
        config: What the run was asked for.
    """
    train, search = trained.config, config.search if trained.method.searches else None
    settings: dict[str, Value | None] = {
        "task": config.task,
        "data": config.data,
        "skip-unreadable": config.skip_unreadable,
        "allow-duplicates": config.allow_duplicates,
        "allow-empty-classes": config.allow_empty_classes,
        "backbone": config.backbone,
        "checkpoint": config.weights,
        "input-size": _size(config.input_size),
        "method": trained.method.name,
        "schedule": train.schedule,
        "epochs": train.epochs,
        "batch-size": train.batch_size,
        "lr": train.lr,
        "drop-path": train.drop_path,
        "ranks": _ranks(trained),
        "scale": train.scale,
        "layers": train.kinds,
        "include": train.include,
        "exclude": train.exclude,
        "seed": config.seed,
        "device": config.device,
    }
    if search is not None:
        settings |= {
            "max-parameters": search.max_parameters,
            "population": search.population,
            "generations": search.generations,
            "servable-mixed": train.servable_mixed,
            "retrain": config.retrain,
            "compare-lora": config.compare_lora,
        }
    return {
        name: each
        for name, each in settings.items()
        if not (each is None or each is False or each == ())
    }


def _size(size: HeightWidth | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"


def _ranks(trained: Trained) -> tuple[int, ...] | None:
    takes = trained.method.searches or trained.method.rank is not None
    return trained.config.ranks if takes and set(trained.config.kinds) != {"affine"} else None
