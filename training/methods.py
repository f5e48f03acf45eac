"""The ways to train a task: search a GLoRA supernet, or train plain LoRA."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.data.load import TaskData
from glora_deploy.glora.forms import Form, LayerForms, Subnet
from glora_deploy.store.history import EpochRecord, StageName, StageRecord, ValidationRecord

from .checkpoint import Checkpoint, state_of
from .config import Method, RunConfig, SearchConfig, TrainConfig
from .evaluate import MergedNetwork
from .event_files import EventFiles
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
    events: EventFiles
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
    stages: tuple[StageRecord, ...] = ()
    """Every epoch, in the order they were trained."""


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
    measured = {n_first: result.best.fitness, config.train.epochs: val_accuracy}
    stages = [_history(job, "training", trainer, measured, supernet_epochs=n_first)]
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
        stages.append(_history(job, "retraining", trainer, {}, supernet_epochs=n_first))
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
        tuple(stages),
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
        state = state_of(supernet.trainable(), _no_moments(supernet))
        kept.write(state, epoch=0, seconds=0.0)
    return kept


def _no_moments(supernet: Supernet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(supernet.trainable().values())


def _prepare(job: Job, stage: StageName, images: Pixels) -> tuple[Supernet, Trainer]:
    config = job.config
    supernet = build_supernet(
        job.backbone, job.data.n_classes, config.train, seed=config.seed, device=job.device
    )
    return supernet, _trainer(job, stage, supernet, images, config.train)


def _trainer(
    job: Job, stage: StageName, supernet: Supernet, images: Pixels, train: TrainConfig
) -> Trainer:
    """A trainer that goes on where the run was interrupted, and tells of its epochs."""

    def report(epoch: EpochRecord) -> None:
        job.events.epoch(stage, epoch)
        note = f"loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}"
        job.report(stage, epoch.epoch, train.epochs, note)

    trainer = Trainer(
        supernet,
        images,
        train,
        random.Random(f"{job.config.seed}/{stage}"),
        checkpoint=job.folder.checkpoint(stage),
        report=report,
    )
    job.events.begin(stage, trainer.history)
    job.report(stage, len(trainer.history), train.epochs, "")  # its time begins
    return trainer


def _history(
    job: Job,
    stage: StageName,
    trainer: Trainer,
    measured: Mapping[int, float],
    *,
    supernet_epochs: int,
) -> StageRecord:
    """What a finished stage keeps; ``measured`` is validation accuracy by epochs done."""
    validations = tuple(
        ValidationRecord(after_epoch=epoch, accuracy=accuracy)
        for epoch, accuracy in sorted(measured.items())
    )
    for each in validations:
        job.events.validation(stage, each.after_epoch, each.accuracy)
    return StageRecord(
        stage=stage,
        supernet_epochs=supernet_epochs,
        epochs=tuple(trainer.history),
        validations=validations,
    )


def _draw(train: TrainConfig, supernet: Supernet) -> Draw:
    make = draw_uniform if train.schedule == "paper" else draw_largest_first
    return make(supernet.space)


def _search(job: Job, supernet: Supernet, fitness: Callable[[Subnet], float]) -> SearchResult:
    config, search = job.config, job.search
    n_planned = search.population * (search.generations + 1)

    def report(n_evaluated: int, best: Scored) -> None:
        note = f"accuracy {best.fitness:.1%}, {best.n_parameters:,} parameters"
        job.report("search", n_evaluated, n_planned, note)

    job.report("search", 0, n_planned, "")
    result = evolve(
        supernet.space,
        fitness,
        search,
        random.Random(f"{config.seed}/search"),
        first=[] if config.train.schedule == "paper" else [supernet.space.largest()],
        report=report,
        on_generation=job.events.generation,
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
    trainer = _trainer(job, "lora", supernet, job.train, train)
    trainer.train(draw_always(subnet))
    merged = _merged(job, supernet)
    accuracy = merged.accuracy(subnet, job.val)
    stages = (_history(job, "lora", trainer, {train.epochs: accuracy}, supernet_epochs=0),)
    network = merged.become(subnet)
    return Trained(
        "lora",
        train,
        supernet,
        subnet,
        network,
        accuracy,
        trainer.seconds,
        0.0,
        None,
        stages=stages,
    )


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
        report=lambda epoch: ends.append(time.perf_counter()),
    )
    trainer.train(draw_always(subnet))
    fastest = min(end - start for start, end in pairwise(ends))
    return max(job.config.train.warmup_epochs + 1, round(seconds / fastest))


def _merged(job: Job, supernet: Supernet) -> MergedNetwork:
    return MergedNetwork(supernet, job.backbone.build(job.data.n_classes).to(job.device))
