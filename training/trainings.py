"""Which trainings a run consists of: that of its method, and of what it is compared with."""

from __future__ import annotations

import torch

from glora_deploy.backbones.load import Backbone

from .attached_network import build_attached
from .config import RunConfig
from .folded_network import build_folded
from .job import Job, Trained
from .method import AttachedMethod, FoldedMethod
from .methods import METHODS
from .supernet import build_supernet
from .train_fixed import train_fixed
from .train_searched import train_searched

COMPARED = "lora"
"""The method that ``compare_lora`` trains beside the run's own."""


def untrained(config: RunConfig, backbone: Backbone, n_classes: int) -> list[Trained]:
    """What a run will end with, as it is before the first epoch: on the CPU, nothing measured.

    Of a search that is still to come, the subnet that stores most.

    Raises:
        SettingError: If the backbone has no layers to adapt, or does not take the settings.
    """
    cpu, method = torch.device("cpu"), METHODS[config.method]
    found = []
    if method.searches:
        supernet = build_supernet(
            backbone, n_classes, config.train, method, seed=config.seed, device=cpu
        )
        largest = supernet.space.largest()
        found.append(
            Trained(method, config.train, supernet, largest, supernet.model, 0.0, 0.0, 0.0, None)
        )
    if isinstance(method, AttachedMethod):
        attached = build_attached(
            backbone, n_classes, config.train, method, seed=config.seed, device=cpu
        )
        found.append(
            Trained(
                method, config.train, attached, attached.subnet, attached.model, 0.0, 0.0, 0.0, None
            )
        )
    fixed = [(method, config.train)] if isinstance(method, FoldedMethod) else []
    if config.compare_lora:
        fixed.append((_compared(), config.train.for_lora()))
    for each, train in fixed:
        adapted = build_folded(
            backbone,
            n_classes,
            train,
            each,
            seed=config.seed,
            device=cpu,
            strict=each is method,
        )
        found.append(
            Trained(each, train, adapted, adapted.subnet, adapted.model, 0.0, 0.0, 0.0, None)
        )
    return found


def train_all(job: Job) -> list[Trained]:
    """Train what a run asks for: its method's result first, then what that is compared with.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no subnet keeps the parameter limits.
    """
    method = job.method
    if isinstance(method, FoldedMethod | AttachedMethod):
        return [train_fixed(job, method, job.config.train)]
    trained = [train_searched(job)]
    if job.config.compare_lora:
        spent = trained[0].train_s + trained[0].search_s
        trained.append(train_fixed(job, _compared(), job.config.train.for_lora(), spent))
    return trained


def _compared() -> FoldedMethod:
    method = METHODS[COMPARED]
    assert isinstance(method, FoldedMethod)
    return method
