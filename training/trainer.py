"""Training supports and classifier, one subnet per step."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.errors import NonFiniteError
from glora_deploy.store.history import EpochRecord

from .adapted import Adapted
from .checkpoint import Checkpoint, state_of
from .config import TrainConfig
from .device import repeatable
from .schedule import Draw, learning_rate
from .split import Split

CHECKPOINT_S = 60.0
"""Seconds of training that a power failure may cost at most, beside the epoch it falls into."""


class Trainer:
    """One optimiser and one learning-rate curve over all epochs, which may be run in parts.

    Tensors off the drawn paths have no gradient and get no optimiser step, neither decay nor
    momentum (torch 1.10, which the authors pin, would give them both). Everything in an epoch
    that is random follows from one number drawn from ``rng``, so that a resumed training draws
    what an uninterrupted one does. BatchNorm stays in eval mode.

    Args:
        adapted: Trained in place.
        split: The training split.
        config: Rates, batch and epochs.
        rng: One draw per epoch.
        checkpoint: Where to continue from; written every few epochs, after a long one, at the end,
            and when an interrupt ends the training: no epoch that was complete is lost.
        report: Called after each epoch with what it came to.

    Raises:
        ArtifactError: If the checkpoint is damaged.
    """

    def __init__(
        self,
        adapted: Adapted[Any],
        split: Split,
        config: TrainConfig,
        rng: random.Random,
        *,
        checkpoint: Checkpoint | None = None,
        report: Callable[[EpochRecord], None] = lambda epoch: None,
    ) -> None:
        self._adapted = adapted
        self._split = split
        self._config = config
        self._rng = rng
        self._checkpoint = checkpoint
        self._report = report
        self._parameters = adapted.trainable()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._epoch = 0
        self._epochs_restored = 0
        self.seconds = 0.0
        """Spent on training so far, before an interruption included."""
        self.history: list[EpochRecord] = []
        """What each epoch came to, those before an interruption included."""
        self._unwritten: dict[str, Tensor] | None = None
        """The state of the last whole epoch, where no file holds it yet."""
        self._written_at = time.perf_counter()
        if checkpoint:
            state = checkpoint.restore(self._parameters, self._optimizer)
            self._epochs_restored, self.seconds, self.history = state

    def train(self, draw: Draw, until: int | None = None) -> None:
        """Go on training, and leave the network in eval mode.

        Args:
            draw: Which subnet each step trains.
            until: The epoch to stop before; the last by default.

        Raises:
            NonFiniteError: If the loss or a weight is no longer finite; that epoch is not kept.
        """
        try:
            self._train(draw, self._config.epochs if until is None else until)
        except KeyboardInterrupt:
            self._write()
            raise
        self._adapted.model.eval()

    def _train(self, draw: Draw, last: int) -> None:
        started, seconds_before = time.perf_counter(), self.seconds
        with repeatable(self._split.labels.device):
            while self._epoch < last:
                rng = random.Random(self._rng.getrandbits(63))
                if self._epoch < self._epochs_restored:
                    self._epoch += 1
                    continue
                torch.manual_seed(rng.getrandbits(63))  # drop path draws from it
                record = self._train_epoch(draw, rng)
                self._end_epoch(record, seconds_before + time.perf_counter() - started, last)
                self._report(record)

    def _end_epoch(self, record: EpochRecord, seconds: float, last: int) -> None:
        self._epoch += 1
        self.history.append(record)
        self.seconds = seconds
        if not self._checkpoint:
            return
        self._unwritten = state_of(self._parameters, self._optimizer)
        # The end of a part is kept too: what comes after it may fail, such as storing the result.
        due = self._epoch % self._config.checkpoint_every == 0 or self._epoch == last
        if due or time.perf_counter() - self._written_at > CHECKPOINT_S:
            self._write()

    def _write(self) -> None:
        """Put the state of the last whole epoch where the training goes on, unless it is there."""
        if self._checkpoint and self._unwritten is not None:
            self._checkpoint.write(self._unwritten, self._epoch, self.seconds, self.history)
            self._unwritten = None
            self._written_at = time.perf_counter()

    def _train_epoch(self, draw: Draw, rng: random.Random) -> EpochRecord:
        """One pass over the split, and what it came to."""
        config, split, started = self._config, self._split, time.perf_counter()
        model = _train_mode(self._adapted.model)
        batch_size = min(config.batch_size, len(split))
        n_steps = len(split) // batch_size
        order = rng.sample(range(len(split)), len(split))
        total_loss = torch.zeros((), device=split.labels.device)
        n_correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
        total_rate = 0.0
        for step in range(n_steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            now = self._epoch + step / n_steps
            self._adapted.take(draw(now / config.epochs, rng))
            rate = learning_rate(config, now if config.schedule == "short" else self._epoch)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            total_rate += rate
            labels = split.labels[chosen]
            logits = model(split.inputs(chosen))
            loss = F.cross_entropy(logits, labels)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
            total_loss += loss.detach()
            n_correct += (logits.detach().argmax(1) == labels).sum()
        mean_loss = float(total_loss) / n_steps
        if not math.isfinite(mean_loss):
            raise NonFiniteError(
                f"training: the loss must be finite, got {mean_loss} in epoch {self._epoch + 1}"
            )
        # A step may have broken them after the last loss was computed.
        for name, parameter in self._parameters.items():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(
                    f"training: {name} must be finite, it is not after epoch {self._epoch + 1}"
                )
        return EpochRecord(
            epoch=self._epoch + 1,
            loss=mean_loss,
            accuracy=int(n_correct) / (n_steps * batch_size),
            learning_rate=total_rate / n_steps,
            seconds=time.perf_counter() - started,
        )


def _train_mode(model: nn.Module) -> nn.Module:
    """Train mode, but running statistics belong to the frozen backbone and are not updated."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model
