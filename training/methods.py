"""The ways to train a task: search a GLoRA supernet, or train plain LoRA."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from glora_deploy.backbone import Backbone
from glora_deploy.data import TaskData
from glora_deploy.inject import find_layers
from glora_deploy.paths import LayerPaths, Path, Subnet

from .config import Method, RunConfig, TrainConfig
from .evaluate import MergedNetwork
from .pixels import Pixels
from .run_folder import RunFolder, ScoreMemory
from .schedule import draw_always, draw_largest_first, draw_uniform
from .search import Scored, evolve
from .supernet import Supernet, build_supernet, train_supernet

Report = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much, and a note."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the stages of one run share."""

    config: RunConfig
    backbone: Backbone
    data: TaskData
    train: Pixels
    val: Pixels
    device: torch.device
    folder: RunFolder
    report: Report


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained subnet of a supernet, and how it came about."""

    method: Method
    config: TrainConfig
    supernet: Supernet
    subnet: Subnet
    network: nn.Module
    """The vanilla network that the subnet merges into."""
    val_accuracy: float
    """Top-1 on the validation split, 0 to 1."""
    train_s: float
    """Seconds of training."""
    search_s: float
    """Seconds of search."""
    n_evaluated: int
    """Subnets that the search scored."""


def require_trainable(config: RunConfig, backbone: Backbone, n_classes: int) -> None:
    """Check that the backbone has layers to adapt and takes the settings, by building it once.

    Raises:
        ValueError: If it has not, or does not.
    """
    if config.method == "lora" or config.compare_lora:
        _build_lora(config, config.train, backbone, n_classes, torch.device("cpu"))
    if config.method == "glora":
        build_supernet(
            backbone, n_classes, config.train, seed=config.seed, device=torch.device("cpu")
        )


def train_glora(job: Job) -> Trained:
    """Train a supernet on the training split, search it on the validation split.

    With ``retrain`` the supernet is trained once more, on both splits together, and the subnet
    takes its weights from that one; its validation accuracy stays the one that chose it.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no layer can be adapted, or no subnet keeps the parameter limits.
    """
    config = job.config
    supernet, train_s = _train_glora_supernet(job, "supernet", job.train)
    merged = _merged(job, supernet)
    n_planned = config.search.population * (config.search.generations + 1)

    def report(n_evaluated: int, best: Scored) -> None:
        note = f"best {best.fitness:.1%}, {best.n_parameters:,} parameters"
        job.report("search", n_evaluated, n_planned, note)

    memory = ScoreMemory(
        lambda subnet: merged.accuracy(subnet, job.val), job.folder, config.search.population
    )
    result = evolve(
        supernet.space,
        memory,
        config.search,
        random.Random(f"{config.seed}/search"),
        first=[supernet.space.largest()] if config.train.schedule == "short" else [],
        report=report,
    )
    job.report("search", n_planned, n_planned, f"best {result.best.fitness:.1%}")
    search_s = memory.seconds
    if config.retrain:
        both = Pixels(job.data.train_val, job.backbone.preprocessing, job.device)
        supernet, seconds = _train_glora_supernet(job, "retraining", both)
        train_s += seconds
        merged = _merged(job, supernet)
    return Trained(
        "glora",
        config.train,
        supernet,
        result.best.subnet,
        merged.become(result.best.subnet),
        result.best.fitness,
        train_s,
        search_s,
        result.n_evaluated,
    )


def _train_glora_supernet(job: Job, stage: str, images: Pixels) -> tuple[Supernet, float]:
    config = job.config
    supernet = build_supernet(
        job.backbone, job.data.n_classes, config.train, seed=config.seed, device=job.device
    )
    draws = {"paper": draw_uniform, "short": draw_largest_first}
    seconds = train_supernet(
        supernet,
        images,
        config.train,
        draws[config.train.schedule](supernet.space),
        random.Random(f"{config.seed}/{stage}"),
        checkpoint=job.folder.checkpoint(stage),
        report=_epoch_report(job.report, stage, config.train.epochs),
    )
    return supernet, seconds


def train_lora(job: Job, seconds: float | None = None) -> Trained:
    """Train plain LoRA: B of the largest rank on the query-key-value layers, nothing else.

    Args:
        job: Data, backbone and settings.
        seconds: Train for as many epochs as fit this time, measured on one; None for the
            configured number of epochs.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no layer can be adapted.
    """
    train = job.config.train
    if seconds is not None:
        limit = seconds
        epochs = job.folder.remember("lora-epochs", lambda: _epochs_within(limit, job))
        train = replace(train, epochs=epochs)
    supernet, subnet = _build_lora(job.config, train, job.backbone, job.data.n_classes, job.device)
    train_s = train_supernet(
        supernet,
        job.train,
        train,
        draw_always(subnet),
        random.Random(f"{job.config.seed}/lora"),
        checkpoint=job.folder.checkpoint("lora"),
        report=_epoch_report(job.report, "lora", train.epochs),
    )
    merged = _merged(job, supernet)
    accuracy = merged.accuracy(subnet, job.val)
    return Trained(
        "lora", train, supernet, subnet, merged.become(subnet), accuracy, train_s, 0.0, 1
    )


def _build_lora(
    config: RunConfig,
    train: TrainConfig,
    backbone: Backbone,
    n_classes: int,
    device: torch.device,
) -> tuple[Supernet, Subnet]:
    """A supernet of the layers that LoRA adapts, and LoRA as its one subnet."""
    found = find_layers(
        backbone.build(n_classes),
        include=train.include,
        exclude=(*train.exclude, *backbone.classifier),
    )
    chosen = [name for name in found if name.endswith("qkv")] or list(found)
    rank = max(train.ranks)
    narrowed = replace(train, kinds=("linear",), include=tuple(chosen), ranks=(rank,))
    supernet = build_supernet(backbone, n_classes, narrowed, seed=config.seed, device=device)
    path = Path("lora", rank)
    return supernet, Subnet({layer: LayerPaths(B=path) for layer in supernet.space.shapes})


def _epochs_within(seconds: float, job: Job) -> int:
    """How many epochs of LoRA fit a time, judged by the second epoch of a throwaway training."""
    train = replace(job.config.train, epochs=2, warmup_epochs=0)
    supernet, subnet = _build_lora(job.config, train, job.backbone, job.data.n_classes, job.device)
    ends: list[float] = []
    train_supernet(
        supernet,
        job.train,
        train,
        draw_always(subnet),
        random.Random(0),
        report=lambda epoch, loss, accuracy: ends.append(time.perf_counter()),
    )
    return max(job.config.train.warmup_epochs + 1, round(seconds / (ends[1] - ends[0])))


def _merged(job: Job, supernet: Supernet) -> MergedNetwork:
    return MergedNetwork(supernet, job.backbone.build(job.data.n_classes).to(job.device))


def _epoch_report(report: Report, stage: str, epochs: int) -> Callable[[int, float, float], None]:
    return lambda epoch, loss, accuracy: report(
        stage, epoch, epochs, f"loss {loss:.3f}, accuracy {accuracy:.1%}"
    )
