"""The ways to train a task: search a GLoRA supernet, or train plain LoRA."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.data.load import TaskData
from glora_deploy.glora.forms import Form, LayerForms, Subnet

from .checkpoint import Checkpoint
from .config import Method, RunConfig, SearchConfig, TrainConfig
from .evaluate import MergedNetwork
from .pixels import Pixels
from .run_folder import RunFolder, ScoreMemory
from .schedule import Draw, draw_always, draw_largest_first, draw_uniform
from .search import Scored, SearchResult, evolve
from .supernet import Supernet, build_supernet
from .trainer import Trainer

N_TIMED_EPOCHS = 3
"""Epochs of LoRA to measure before deciding how many fit a time."""

OnProgress = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much in all, and a note."""


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
    report: OnProgress

    @property
    def search(self) -> SearchConfig:
        """How to search; only ``glora`` does."""
        assert self.config.search is not None
        return self.config.search


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
    search: SearchResult | None
    """What the search found; None where there was none."""
    as_searched: bool = False
    """Whether the weights are those of the supernet at the end of the search, since the epochs
    after it had made the subnet no better on the validation split."""


def untrained(config: RunConfig, backbone: Backbone, n_classes: int) -> list[Trained]:
    """What a run will end with, as it is before the first epoch: on the CPU, nothing measured.

    Of a search that is still to come, the subnet that stores most.

    Raises:
        SettingError: If the backbone has no layers to adapt, or does not take the settings.
    """
    cpu = torch.device("cpu")
    begun: list[tuple[Method, TrainConfig, Supernet, Subnet]] = []
    if config.method == "glora":
        supernet = build_supernet(backbone, n_classes, config.train, seed=config.seed, device=cpu)
        begun.append(("glora", config.train, supernet, supernet.space.largest()))
    if config.method == "lora" or config.compare_lora:
        train = config.train.for_lora()
        begun.append(("lora", train, *_build_lora(config, train, backbone, n_classes, cpu)))
    return [
        Trained(method, train, supernet, subnet, supernet.model, 0.0, 0.0, 0.0, None)
        for method, train, supernet, subnet in begun
    ]


def train_glora(job: Job) -> Trained:
    """Train a supernet on the training split, search it on the validation split.

    Where the schedule leaves epochs after the search, they train the chosen subnet alone; of its
    weights before and after them those are kept that do better on the validation split. With
    ``retrain`` all of the training is done once more on both splits together, with the chosen
    subnet given; the validation accuracy then stays that of the first training.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no subnet keeps the parameter limits.
    """
    config, n_first = job.config, job.config.train.supernet_epochs
    search = job.search
    supernet, trainer = _prepare(job, "training", job.train)
    trainer.train(_draw(config.train, supernet), until=n_first)
    merged = _merged(job, supernet)
    memory = ScoreMemory(
        lambda subnet: merged.accuracy(subnet, job.val), job.folder, search.population
    )
    result = _search(job, supernet, memory)
    search_s = memory.seconds
    memory.write()  # the scores are those of weights that are about to change
    subnet = result.best.subnet
    searched = None if config.retrain else _searched_weights(job, supernet)
    trainer.train(draw_always(subnet))
    val_accuracy, train_s = merged.accuracy(subnet, job.val), trainer.seconds
    as_searched = searched is not None and result.best.fitness > val_accuracy
    if searched is not None and as_searched:
        searched.restore(supernet.trainable(), _no_moments(supernet))
        val_accuracy = result.best.fitness
    if config.retrain:
        both = Pixels(job.data.train_val, job.backbone.preprocessing, job.device)
        supernet, trainer = _prepare(job, "retraining", both)
        trainer.train(_draw(config.train, supernet), until=n_first)
        trainer.train(draw_always(subnet))
        train_s += trainer.seconds
        merged = _merged(job, supernet)
    network = merged.become(subnet)
    return Trained(
        "glora",
        config.train,
        supernet,
        subnet,
        network,
        val_accuracy,
        train_s,
        search_s,
        result,
        as_searched,
    )


def _searched_weights(job: Job, supernet: Supernet) -> Checkpoint | None:
    """The supernet's weights at the end of the search, kept; None if no epoch follows it."""
    train = job.config.train
    kept = job.folder.checkpoint("searched")
    if train.supernet_epochs == train.epochs:
        return None
    if not kept.path.exists():
        if job.folder.checkpoint("training").epoch > train.supernet_epochs:
            return None  # an earlier release was interrupted here, and kept none
        # It counts no epoch: those are in the checkpoint of the training.
        kept.write(supernet.trainable(), _no_moments(supernet), epoch=0, seconds=0.0)
    return kept


def _no_moments(supernet: Supernet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(supernet.trainable().values())


def _prepare(job: Job, stage: str, images: Pixels) -> tuple[Supernet, Trainer]:
    config = job.config
    supernet = build_supernet(
        job.backbone, job.data.n_classes, config.train, seed=config.seed, device=job.device
    )
    trainer = Trainer(
        supernet,
        images,
        config.train,
        random.Random(f"{config.seed}/{stage}"),
        checkpoint=job.folder.checkpoint(stage),
        report=_epoch_report(job.report, stage, config.train.epochs),
    )
    return supernet, trainer


def _draw(train: TrainConfig, supernet: Supernet) -> Draw:
    make = draw_uniform if train.schedule == "paper" else draw_largest_first
    return make(supernet.space)


def _search(job: Job, supernet: Supernet, fitness: Callable[[Subnet], float]) -> SearchResult:
    config, search = job.config, job.search
    n_planned = search.population * (search.generations + 1)

    def report(n_evaluated: int, best: Scored) -> None:
        note = f"accuracy {best.fitness:.1%}, {best.n_parameters:,} parameters"
        job.report("search", n_evaluated, n_planned, note)

    result = evolve(
        supernet.space,
        fitness,
        search,
        random.Random(f"{config.seed}/search"),
        first=[] if config.train.schedule == "paper" else [supernet.space.largest()],
        report=report,
    )
    # A small space is exhausted earlier: the bar is full all the same.
    job.report("search", n_planned, n_planned, f"accuracy {result.best.fitness:.1%}")
    return result


def train_lora(job: Job, seconds: float | None = None) -> Trained:
    """Train plain LoRA: B of the largest rank on the layers that ``choose_layers`` says.

    Args:
        job: Data, backbone and settings.
        seconds: Train for as many epochs as fit this time, measured; None for the
            configured number of epochs.

    Raises:
        NonFiniteError: If training diverges.
        ValueError: If no layer can be adapted.
    """
    train = job.config.train.for_lora()
    if seconds is not None:
        limit = seconds
        epochs = job.folder.remember("lora-epochs", lambda: _epochs_within(limit, job))
        train = replace(train, epochs=epochs)
    supernet, subnet = _build_lora(job.config, train, job.backbone, job.data.n_classes, job.device)
    trainer = Trainer(
        supernet,
        job.train,
        train,
        random.Random(f"{job.config.seed}/lora"),
        checkpoint=job.folder.checkpoint("lora"),
        report=_epoch_report(job.report, "lora", train.epochs),
    )
    trainer.train(draw_always(subnet))
    merged = _merged(job, supernet)
    accuracy = merged.accuracy(subnet, job.val)
    network = merged.become(subnet)
    return Trained("lora", train, supernet, subnet, network, accuracy, trainer.seconds, 0.0, None)


def _build_lora(
    config: RunConfig,
    train: TrainConfig,
    backbone: Backbone,
    n_classes: int,
    device: torch.device,
) -> tuple[Supernet, Subnet]:
    """A supernet of the layers that LoRA adapts, and LoRA as its one subnet."""
    supernet = build_supernet(
        backbone,
        n_classes,
        train,
        seed=config.seed,
        device=device,
        method="lora",
        strict=config.method == "lora",
    )
    (rank,) = train.ranks
    path = Form("lora", rank)
    return supernet, Subnet({layer: LayerForms(B=path) for layer in supernet.space.shapes})


def _epochs_within(seconds: float, job: Job) -> int:
    """How many epochs of LoRA fit a time, judged by the fastest of a throwaway training.

    The fastest, as whatever else the machine does meanwhile must not cost LoRA epochs.
    """
    train = replace(job.config.train.for_lora(), epochs=N_TIMED_EPOCHS + 1, warmup_epochs=0)
    supernet, subnet = _build_lora(job.config, train, job.backbone, job.data.n_classes, job.device)
    ends: list[float] = []
    trainer = Trainer(
        supernet,
        job.train,
        train,
        random.Random(0),
        report=lambda epoch, loss, accuracy: ends.append(time.perf_counter()),
    )
    trainer.train(draw_always(subnet))
    fastest = min(end - start for start, end in pairwise(ends))
    return max(job.config.train.warmup_epochs + 1, round(seconds / fastest))


def _merged(job: Job, supernet: Supernet) -> MergedNetwork:
    return MergedNetwork(supernet, job.backbone.build(job.data.n_classes).to(job.device))


def _epoch_report(
    report: OnProgress, stage: str, epochs: int
) -> Callable[[int, float, float], None]:
    return lambda epoch, loss, accuracy: report(
        stage, epoch, epochs, f"loss {loss:.3f}, accuracy {accuracy:.1%}"
    )
