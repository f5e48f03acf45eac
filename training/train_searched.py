"""Train a supernet, search it, and train the subnet that was chosen."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, cast

import torch

from glora_deploy.backbones.load import Backbone
from glora_deploy.store.history import StageName

from .checkpoint import Checkpoint, state_of
from .config import TrainConfig
from .evaluate import AnsweringNetwork, UnmergedNetwork, hardest_first
from .job import Job, Trained, merged_of, stage_record, trainer_of
from .method import Method, SizedMethod
from .pixels import Pixels
from .run_folder import ScoreMemory
from .schedule import Draw, draw_always, draw_largest_first, draw_uniform
from .search import Fitness, Genes, Scored, SearchResult, evolve
from .sized_network import SizedNetwork, build_sized
from .supernet import Supernet, build_supernet
from .trainer import Trainer

Searched = Supernet | SizedNetwork


def train_searched(job: Job) -> Trained:
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
    answering = _answering(job, supernet)
    largest = supernet.space.largest()

    @cache
    def order() -> list[int]:  # a part of the search's time, and of no use if all is known
        return hardest_first(answering.become(largest), job.val)

    memory = ScoreMemory(
        lambda subnet, worthwhile: answering.score(subnet, job.val, worthwhile, order()),
        job.folder,
        search.population,
    )
    result = _search(job, supernet, memory)
    search_s = memory.seconds
    memory.write()  # the scores are those of weights that are about to change
    subnet = result.best.candidate
    searched = None if config.retrain else _searched_weights(job, supernet)
    trainer.train(draw_always(subnet))
    val_accuracy, train_s = answering.accuracy(subnet, job.val), trainer.seconds
    measured = {n_first: result.best.fitness, config.train.epochs: val_accuracy}
    stages = [stage_record(job, "training", trainer, measured, supernet_epochs=n_first)]
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
        stages.append(stage_record(job, "retraining", trainer, {}, supernet_epochs=n_first))
        answering = _answering(job, supernet)
    network = answering.become(subnet)
    return Trained(
        job.method,
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


def _answering(job: Job, supernet: Searched) -> AnsweringNetwork[Any]:
    return merged_of(job, supernet) if isinstance(supernet, Supernet) else UnmergedNetwork(supernet)


def _searched_weights(job: Job, supernet: Searched) -> Checkpoint | None:
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


def _no_moments(supernet: Searched) -> torch.optim.Optimizer:
    return torch.optim.AdamW(supernet.trainable().values())


def build_searched(
    backbone: Backbone,
    n_classes: int,
    config: TrainConfig,
    method: Method,
    *,
    seed: int,
    device: torch.device,
) -> Searched:
    """What a method with a search trains before it searches.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: How.
        method: What adapts it.
        seed: Of the classifier and the method's tensors.
        device: Where to put it.

    Raises:
        SettingError: If the method cannot adapt this backbone.
    """
    if isinstance(method, SizedMethod):
        return build_sized(backbone, n_classes, config, method, seed=seed, device=device)
    return build_supernet(backbone, n_classes, config, method, seed=seed, device=device)


def _prepare(job: Job, stage: StageName, images: Pixels) -> tuple[Searched, Trainer]:
    config = job.config
    supernet = build_searched(
        job.backbone,
        job.data.n_classes,
        config.train,
        job.method,
        seed=config.seed,
        device=job.device,
    )
    return supernet, trainer_of(job, stage, supernet, images, config.train)


def _draw(train: TrainConfig, supernet: Searched) -> Draw:
    make = draw_uniform if train.schedule == "paper" else draw_largest_first
    return make(supernet.space)


def _search(job: Job, supernet: Searched, fitness: Fitness[Any]) -> SearchResult[Any]:
    config, search = job.config, job.search
    n_planned = search.population * (search.generations + 1)

    def report(n_evaluated: int, best: Scored[Any]) -> None:
        note = f"accuracy {best.fitness:.1%}, {best.n_parameters:,} parameters"
        job.report("search", n_evaluated, n_planned, note)

    job.report("search", 0, n_planned, "")
    result = evolve(
        cast(Genes[Any], supernet.genes),
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
