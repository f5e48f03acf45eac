"""The supernet: built from a backbone, trained one subnet per step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.backbone import Backbone
from glora_deploy.errors import NonFiniteError
from glora_deploy.inject import find_layers, inject, set_subnet
from glora_deploy.paths import SearchSpace

from .checkpoint import Checkpoint
from .config import TrainConfig
from .device import repeatable
from .pixels import Pixels
from .schedule import Draw, learning_rate, small_form_scales


@dataclass(frozen=True, slots=True)
class Supernet:
    """A backbone with supports, and the space of its subnets."""

    model: nn.Module
    space: SearchSpace
    classifier: tuple[str, ...]
    """Dotted names of the modules that are trained whole."""

    def head(self) -> dict[str, Tensor]:
        """The classifier's tensors by state-dict name."""
        prefixes = tuple(f"{name}." for name in self.classifier)
        return {k: v for k, v in self.model.state_dict().items() if k.startswith(prefixes)}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Supports and classifier, by name, in module order."""
        return {k: v for k, v in self.model.named_parameters() if v.requires_grad}


def build_supernet(
    backbone: Backbone, n_classes: int, config: TrainConfig, *, seed: int, device: torch.device
) -> Supernet:
    """Put supports on every layer that the configuration names; all paths start as no-ops.

    Args:
        backbone: Not modified.
        n_classes: Rows of the new classifier.
        config: Kinds, patterns, ranks, drop path; the schedule decides on the scales.
        seed: Of the classifier and the supports.
        device: Where to put it.

    Raises:
        ValueError: If no layer matches, or the architecture knows no drop path and the
            configuration asks for it.
    """
    if config.drop_path:
        arguments = {**backbone.model_args, "drop_path_rate": config.drop_path}
        backbone = replace(backbone, model_args=arguments)
    model = backbone.build(n_classes, seed=seed)
    layers = find_layers(
        model,
        kinds=config.kinds,
        include=config.include,
        exclude=(*config.exclude, *backbone.classifier),
    )
    scales = {name: small_form_scales(shape) for name, shape in layers.items()}
    space = inject(
        model,
        layers,
        ranks=config.ranks,
        generator=torch.Generator().manual_seed(seed),
        scales=scales if config.schedule == "short" else None,
    )
    for name in backbone.classifier:
        model.get_submodule(name).requires_grad_(True)
    return Supernet(model.to(device), space, backbone.classifier)


def train_supernet(
    supernet: Supernet,
    images: Pixels,
    config: TrainConfig,
    draw: Draw,
    rng: random.Random,
    *,
    checkpoint: Checkpoint | None = None,
    report: Callable[[int, float, float], None] = lambda epoch, loss, accuracy: None,
) -> float:
    """Train supports and classifier; one subnet per step serves its whole batch.

    Tensors off the drawn paths have no gradient and get no optimiser step, neither decay nor
    momentum (torch 1.10, which the authors pin, would give them both). Everything of an epoch
    that is random follows from one number drawn from ``rng``, so that a resumed training draws
    as an uninterrupted one does. BatchNorm stays in eval mode.

    Args:
        supernet: Trained in place; left in eval mode.
        images: The training split.
        config: Rates, batch and epochs.
        draw: Which subnet each step trains.
        rng: One draw per epoch.
        checkpoint: Where to continue from and what to write every few epochs.
        report: Called after each epoch with how many are done, and the mean loss and top-1 (0 to
            1) on the batches it trained on.

    Returns:
        Seconds of training, those before an interruption included.

    Raises:
        NonFiniteError: If the loss is no longer finite.
    """
    parameters = supernet.trainable()
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.lr, weight_decay=config.weight_decay, foreach=True
    )
    n_before, seconds_before = checkpoint.restore(parameters, optimizer) if checkpoint else (0, 0.0)
    started = time.perf_counter()
    with repeatable(images.labels.device):
        for epoch in range(config.epochs):
            epoch_rng = random.Random(rng.getrandbits(63))
            if epoch < n_before:
                continue
            torch.manual_seed(epoch_rng.getrandbits(63))  # drop path draws from it
            loss, accuracy = _train_epoch(
                supernet, images, config, draw, epoch_rng, optimizer, epoch
            )
            report(epoch + 1, loss, accuracy)
            if checkpoint and (epoch + 1) % config.checkpoint_every == 0:
                seconds = seconds_before + time.perf_counter() - started
                checkpoint.write(parameters, optimizer, epoch + 1, seconds)
    supernet.model.eval()
    return seconds_before + time.perf_counter() - started


def _train_epoch(
    supernet: Supernet,
    images: Pixels,
    config: TrainConfig,
    draw: Draw,
    rng: random.Random,
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> tuple[float, float]:
    """One pass over the split: the mean loss and accuracy of its steps."""
    model = _train_mode(supernet.model)
    batch_size = min(config.batch_size, len(images))
    n_steps = len(images) // batch_size
    order = rng.sample(range(len(images)), len(images))
    device = images.labels.device
    total_loss = torch.zeros((), device=device)
    n_correct = torch.zeros((), dtype=torch.int64, device=device)
    for step in range(n_steps):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        now = epoch + step / n_steps
        set_subnet(model, draw(now / config.epochs, rng))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, now if config.schedule == "short" else epoch)
        labels = images.labels[chosen]
        logits = model(images.inputs(chosen))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total_loss += loss.detach()
        n_correct += (logits.detach().argmax(1) == labels).sum()
    mean_loss = float(total_loss) / n_steps
    if mean_loss - mean_loss != 0:
        raise NonFiniteError(
            f"training: the loss must be finite, got {mean_loss} in epoch {epoch + 1}. "
            "Lower the learning rate."
        )
    return mean_loss, int(n_correct) / (n_steps * batch_size)


def _train_mode(model: nn.Module) -> nn.Module:
    """Train mode, but running statistics belong to the frozen backbone and are not updated."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model
