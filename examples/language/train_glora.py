"""Supernet, search and chosen subnet of a text task, by the parts that do it for images.

What ``glora train`` does in ``training/train_searched.py``, without a store: no interruption is
gone on with.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from glora_deploy.glora.forms import Subnet
from glora_deploy.store.history import EpochRecord
from glora_deploy.training.adapted import Adapted, generator_of
from glora_deploy.training.chosen_layers import choose_layers
from glora_deploy.training.config import SearchConfig, TrainConfig
from glora_deploy.training.evaluate import MergedNetwork, accuracies, hardest_first
from glora_deploy.training.folded_network import FoldedNetwork
from glora_deploy.training.method import FoldedMethod
from glora_deploy.training.methods import METHODS
from glora_deploy.training.schedule import draw_always, draw_largest_first
from glora_deploy.training.search import Scored, SearchResult, evolve
from glora_deploy.training.split import Split
from glora_deploy.training.supernet import Supernet, supernet_of
from glora_deploy.training.trainer import Trainer

from .network import CLASSIFIER, PREFIX, TokenClassifier

Build = Callable[[], TokenClassifier]
"""Gives the same vanilla network, with the same new classifier, each time."""
OnProgress = Callable[[str, int, int, str], None]
"""As ``glora_deploy.training.job.OnProgress``."""

TRAINED_WHOLE = tuple(PREFIX + name for name in CLASSIFIER)


@dataclass(frozen=True, slots=True)
class Trained:
    """A subnet, and the networks that compute it."""

    adapted: Adapted
    """As it was trained, set to the subnet, in eval mode."""
    subnet: Subnet
    network: TokenClassifier
    """The vanilla network that it merges into."""
    val_accuracy: float
    """Top-1, 0 to 1."""
    train_s: float
    """Seconds of training, without search and evaluation."""


def train_searched(
    build: Build,
    train: Split,
    val: Split,
    config: TrainConfig,
    search: SearchConfig,
    *,
    seed: int,
    report: OnProgress,
) -> Trained:
    """Train a supernet, search it on the validation split, train the chosen subnet alone.

    Of the weights before and after the last part those are kept that do better on ``val``.

    Raises:
        NonFiniteError: If training diverges.
        SettingError: If no layer matches the configuration.
        ValueError: If no subnet keeps the parameter limits.
    """
    network = build()
    layers = choose_layers(network, config, TRAINED_WHOLE, method=METHODS["glora"])
    supernet = supernet_of(network, layers, TRAINED_WHOLE, config, seed=seed)
    trainer = _trainer(supernet, train, config, "training", seed, report)
    trainer.train(draw_largest_first(supernet.space), until=config.supernet_epochs)
    merged = MergedNetwork(supernet, build())
    best = _search(supernet, merged, val, search, seed, report).best
    kept = {name: tensor.detach().clone() for name, tensor in supernet.trainable().items()}
    trainer.train(draw_always(best.candidate))
    accuracy = merged.accuracy(best.candidate, val)
    if accuracy < best.fitness:
        accuracy = best.fitness
        supernet.model.load_state_dict(kept, strict=False)
    return _trained(supernet, best.candidate, merged, accuracy, trainer)


def train_folded(
    build: Build,
    train: Split,
    val: Split,
    config: TrainConfig,
    method: FoldedMethod,
    *,
    seed: int,
    report: OnProgress,
) -> Trained:
    """Train by a method that searches nothing, such as ``linear``: the classifier alone.

    Raises:
        NonFiniteError: If training diverges.
        SettingError: If no layer matches the configuration.
    """
    network = build().requires_grad_(False)
    for name in TRAINED_WHOLE:
        network.get_submodule(name).requires_grad_(True)
    if method.rank is not None:
        config = replace(config, ranks=(method.rank,), kinds=method.kinds)
    layers = choose_layers(network, config, TRAINED_WHOLE, method=method, strict=False)
    folded = FoldedNetwork(network, layers, TRAINED_WHOLE, method, config, generator_of(seed))
    trainer = _trainer(folded, train, config, method.name, seed, report)
    trainer.train(draw_always(folded.subnet))
    merged = MergedNetwork(folded, build())
    accuracy = merged.accuracy(folded.subnet, val)
    return _trained(folded, folded.subnet, merged, accuracy, trainer)


def accuracy_on(trained: Trained, test: Split) -> float:
    """Top-1 of the merged network, 0 to 1."""
    return float(accuracies([trained.network], test)[0])


def _trained(
    adapted: Adapted[Subnet],
    subnet: Subnet,
    merged: MergedNetwork,
    accuracy: float,
    trainer: Trainer,
) -> Trained:
    adapted.take(subnet)
    network = merged.become(subnet)
    assert isinstance(network, TokenClassifier)
    return Trained(adapted, subnet, network, accuracy, trainer.seconds)


def _trainer(
    adapted: Adapted[Subnet],
    split: Split,
    config: TrainConfig,
    stage: str,
    seed: int,
    report: OnProgress,
) -> Trainer:
    def tell(epoch: EpochRecord) -> None:
        note = f"loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}"
        report(stage, epoch.epoch, config.epochs, note)

    report(stage, 0, config.epochs, "")  # its time begins
    return Trainer(adapted, split, config, random.Random(f"{seed}/{stage}"), report=tell)


def _search(
    supernet: Supernet,
    merged: MergedNetwork,
    val: Split,
    search: SearchConfig,
    seed: int,
    report: OnProgress,
) -> SearchResult[Subnet]:
    n_planned = search.population * (search.generations + 1)

    def tell(n_evaluated: int, best: Scored[Subnet]) -> None:
        note = f"accuracy {best.fitness:.1%}, {best.n_parameters:,} parameters"
        report("search", n_evaluated, n_planned, note)

    report("search", 0, n_planned, "")
    order = hardest_first(merged.become(supernet.space.largest()), val)
    return evolve(
        supernet.genes,
        lambda subnet, worthwhile: merged.score(subnet, val, worthwhile, order),
        search,
        random.Random(f"{seed}/search"),
        first=[supernet.space.largest()],
        report=tell,
    )
