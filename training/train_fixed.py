"""Train what a method without a search adapts."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import pairwise

import torch

from glora_deploy.backbones.load import Backbone

from .attached_network import AttachedNetwork, build_attached
from .config import TrainConfig
from .evaluate import accuracies
from .folded_network import FoldedNetwork, build_folded
from .job import Job, Trained, merged_of, stage_record, trainer_of
from .method import AttachedMethod, FoldedMethod, WholeMethod
from .schedule import draw_always
from .trainer import Trainer
from .whole_network import WholeNetwork, build_whole

FixedMethod = FoldedMethod | AttachedMethod | WholeMethod
"""One that trains one thing, and searches nothing."""

N_TIMED_EPOCHS = 3
"""Epochs to measure before deciding how many fit a time."""


def train_fixed(
    job: Job,
    method: FixedMethod,
    train: TrainConfig,
    seconds: float | None = None,
) -> Trained:
    """Train on the training split; the validation split only says how good it became.

    Args:
        job: Data, backbone and settings.
        method: What adapts the backbone.
        train: How; not the job's own where this is what that is compared with.
        seconds: Train for as many epochs as fit this time, measured; None for the
            configured number of epochs.

    Raises:
        NonFiniteError: If training diverges.
        SettingError: If no layer can be adapted.
    """
    if seconds is not None:
        limit, timed = seconds, train
        epochs = job.folder.remember(
            f"{method.name}-epochs", lambda: _epochs_within(limit, job, method, timed)
        )
        train = replace(train, epochs=epochs)
    adapted = _build(job, method, train)
    trainer = trainer_of(job, method.name, adapted, job.train, train)
    trainer.train(draw_always(adapted.subnet))
    network = adapted.model
    if isinstance(adapted, FoldedNetwork):
        network = merged_of(job, adapted).become(adapted.subnet)
    (accuracy,) = accuracies([network], job.val)
    record = stage_record(job, method.name, trainer, {train.epochs: accuracy}, supernet_epochs=0)
    return Trained(
        method,
        train,
        adapted,
        adapted.subnet,
        network,
        accuracy,
        trainer.seconds,
        0.0,
        None,
        stages=(record,),
    )


def build_fixed(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: FixedMethod,
    *,
    seed: int,
    device: torch.device,
    strict: bool = True,
) -> FoldedNetwork | AttachedNetwork | WholeNetwork:
    """What a method without a search trains.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: How.
        method: What adapts it.
        seed: Of the classifier and the method's tensors.
        device: Where to put it.
        strict: As for ``choose_layers``.

    Raises:
        SettingError: If the method cannot adapt this backbone.
    """
    match method:
        case WholeMethod():
            return build_whole(backbone, n_classes, config, seed=seed, device=device)
        case AttachedMethod():
            return build_attached(backbone, n_classes, config, method, seed=seed, device=device)
        case FoldedMethod():
            return build_folded(
                backbone, n_classes, config, method, seed=seed, device=device, strict=strict
            )


def _build(
    job: Job, method: FixedMethod, train: TrainConfig
) -> FoldedNetwork | AttachedNetwork | WholeNetwork:
    return build_fixed(
        job.backbone,
        job.data.n_classes,
        train,
        method,
        seed=job.config.seed,
        device=job.device,
        strict=method is job.method,
    )


def _epochs_within(seconds: float, job: Job, method: FixedMethod, train: TrainConfig) -> int:
    """How many epochs fit a time, judged by the fastest of a throwaway training.

    The fastest, as whatever else the machine does meanwhile must not cost epochs.
    """
    short = replace(train, epochs=N_TIMED_EPOCHS + 1, warmup_epochs=0)
    adapted = _build(job, method, short)
    ends: list[float] = []
    trainer = Trainer(
        adapted,
        job.train,
        short,
        random.Random(0),
        report=lambda epoch: ends.append(time.perf_counter()),
    )
    trainer.train(draw_always(adapted.subnet))
    fastest = min(end - start for start, end in pairwise(ends))
    return max(train.warmup_epochs + 1, round(seconds / fastest))
