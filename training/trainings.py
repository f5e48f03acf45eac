"""Which trainings a run consists of: that of its method, and of what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from glora_deploy.backbones.load import Backbone

from .adapted import Adapted
from .config import RunConfig, TrainConfig
from .cost import BATCH, cost_of, peak_memory
from .folded_network import build_folded
from .job import Job, Trained
from .method import AttachedMethod, FoldedMethod, Method
from .methods import METHODS
from .train_fixed import FixedMethod, build_fixed, train_fixed
from .train_searched import build_searched, train_searched

COMPARED = "lora"
"""The method that ``compare_lora`` trains beside the run's own."""


def untrained(config: RunConfig, backbone: Backbone, n_classes: int) -> list[Trained]:
    """What a run will end with, as it is before the first epoch: on the CPU, nothing measured.

    Of a search that is still to come, the subnet that stores most.

    Raises:
        SettingError: If the backbone has no layers to adapt, or does not take the settings.
    """
    cpu, method = torch.device("cpu"), METHODS[config.method]
    if method.searches:
        supernet = build_searched(
            backbone, n_classes, config.train, method, seed=config.seed, device=cpu
        )
        found = [_as_is(method, config.train, supernet, supernet.space.largest())]
    else:
        assert isinstance(method, FixedMethod)
        fixed = build_fixed(backbone, n_classes, config.train, method, seed=config.seed, device=cpu)
        found = [_as_is(method, config.train, fixed, fixed.subnet)]
    if config.compare_lora:
        lora, train = _compared(), config.train.for_lora()
        beside = build_folded(
            backbone, n_classes, train, lora, seed=config.seed, device=cpu, strict=False
        )
        found.append(_as_is(lora, train, beside, beside.subnet))
    return found


def train_all(job: Job) -> list[Trained]:
    """Train what a run asks for: its method's result first, then what that is compared with.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no subnet keeps the parameter limits.
    """
    method = job.method
    if not method.searches:
        assert isinstance(method, FixedMethod)
        return [_measured(job, lambda: train_fixed(job, method, job.config.train))]
    trained = [_measured(job, lambda: train_searched(job))]
    if job.config.compare_lora:
        spent = trained[0].train_s + trained[0].search_s
        train = job.config.train.for_lora()
        trained.append(_measured(job, lambda: train_fixed(job, _compared(), train, spent)))
    return trained


def _measured(job: Job, train: Callable[[], Trained]) -> Trained:
    """Train, and keep what it took."""
    with peak_memory(job.device) as peak:
        trained = train()
    adapted = trained.adapted
    adapted.take(trained.subnet)
    merged = trained.network
    if isinstance(trained.method, AttachedMethod):  # it cannot merge: what one that can would be
        merged = job.backbone.build(job.data.n_classes).to(job.device)
    images = job.val.inputs(range(min(BATCH, len(job.val))))
    cost = cost_of(merged, adapted.model, images, peak, job.device)
    return replace(trained, cost=cost)


def _as_is(method: Method, config: TrainConfig, adapted: Adapted[Any], subnet: Any) -> Trained:
    return Trained(method, config, adapted, subnet, adapted.model, 0.0, 0.0, 0.0, None)


def _compared() -> FoldedMethod:
    method = METHODS[COMPARED]
    assert isinstance(method, FoldedMethod)
    return method
