"""One run of the training side: what its stages share, and what comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.data.load import TaskData
from glora_deploy.glora.forms import Subnet
from glora_deploy.store.cost_record import CostRecord
from glora_deploy.store.history import EpochRecord, StageName, StageRecord, ValidationRecord

from .adapted import Adapted
from .config import RunConfig, SearchConfig, TrainConfig
from .evaluate import MergedNetwork
from .event_files import EventFiles
from .method import Method
from .methods import METHODS
from .pixels import Pixels
from .run_folder import RunFolder
from .search import SearchResult
from .trainer import Trainer

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
    def method(self) -> Method:
        """What trains the task."""
        return METHODS[self.config.method]

    @property
    def search(self) -> SearchConfig:
        """How to search; only methods that search have it."""
        assert self.config.search is not None
        return self.config.search


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained subnet of an adapted network, and how it came about."""

    method: Method
    config: TrainConfig
    adapted: Adapted[Any]
    subnet: Any
    """As ``adapted.take`` takes it."""
    network: nn.Module
    """The vanilla network that the subnet merges into; the adapted one itself if it cannot."""
    val_accuracy: float
    """Top-1 on the validation split, 0 to 1."""
    train_s: float
    """Seconds of training."""
    search_s: float
    """Seconds of search."""
    search: SearchResult[Any] | None
    """What the search found; None where there was none."""
    as_searched: bool = False
    """Whether the weights are those of the supernet at the end of the search, since the epochs
    after it had made the subnet no better on the validation split."""
    stages: tuple[StageRecord, ...] = ()
    """Every epoch, in the order they were trained."""
    cost: CostRecord | None = None
    """What it took; None before it was trained."""


def trainer_of(
    job: Job, stage: StageName, adapted: Adapted[Any], images: Pixels, train: TrainConfig
) -> Trainer:
    """A trainer that goes on where the run was interrupted, and tells of its epochs."""

    def report(epoch: EpochRecord) -> None:
        job.events.epoch(stage, epoch)
        note = f"loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}"
        job.report(stage, epoch.epoch, train.epochs, note)

    trainer = Trainer(
        adapted,
        images,
        train,
        random.Random(f"{job.config.seed}/{stage}"),
        checkpoint=job.folder.checkpoint(stage),
        report=report,
    )
    job.events.begin(stage, trainer.history)
    job.report(stage, len(trainer.history), train.epochs, "")  # its time begins
    return trainer


def stage_record(
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


def merged_of(job: Job, adapted: Adapted[Subnet]) -> MergedNetwork:
    """A vanilla network for what an adapted one merges into."""
    return MergedNetwork(adapted, job.backbone.build(job.data.n_classes).to(job.device))
