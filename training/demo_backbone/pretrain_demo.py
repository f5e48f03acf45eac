"""Pretrain the demo backbone.

``python -m glora_deploy.training.demo_backbone.pretrain_demo --help`` lists the options.

One small ViT answers every question about drawn images (``pretrain_images``) with one linear
layer, which is thrown away. What remains is written as ``demo-vit.safetensors``, in float16, and
``demo-vit.json``: how to build it, as the packaged file of that name says, and how it was made.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from glora_deploy.backbones.load import load_backbone
from glora_deploy.backbones.packaged import packaged_config
from glora_deploy.console import one_line_errors, progress_bars
from glora_deploy.data.built_in_tasks import BUILT_IN_TASKS
from glora_deploy.data.load import ImageSet, load_task
from glora_deploy.data.preprocess import Preprocessing, normalise, preprocess_batch

from .pretrain_images import GROUNDS, NUMBERS, SUBJECTS, PretrainImages, draw_images
from .ridge_probe import ridge_accuracy

NAME = "demo-vit"

BATCH_SIZE = 64
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.05
"""Share of the steps."""
N_HELD_OUT = 4000
PREPROCESSING = Preprocessing.from_timm(packaged_config(NAME)["pretrained_cfg"])

logger = logging.getLogger(__name__)
app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to write both files to.")],
    images: Annotated[int, typer.Option(min=BATCH_SIZE, help="Images to draw.")] = 60_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over them.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the images, the weights and their order.")] = 0,
) -> None:
    """Draw images, train the demo backbone on them, measure it and write it.

    An epoch that is finished is kept in OUT/demo-vit.checkpoint; the same command goes on from it.

    Example: python -m glora_deploy.training.demo_backbone.pretrain_demo --out build/weights
    """
    with one_line_errors(interrupted="interrupted; the same command goes on"):
        out.mkdir(parents=True, exist_ok=True)
        pretrain(out, n_images=images, n_epochs=epochs, seed=seed)


def pretrain(out: Path, *, n_images: int, n_epochs: int, seed: int) -> None:
    """Train, measure and write ``demo-vit.safetensors`` and ``demo-vit.json`` into a folder."""
    started = time.perf_counter()
    train, held_out = draw_pool(n_images, seed), draw_pool(N_HELD_OUT, seed + 1)
    model = build_model(seed)
    seconds = _train(model, train, out / f"{NAME}.checkpoint", n_epochs=n_epochs, seed=seed)
    weights = out / f"{NAME}.safetensors"
    # The head answers the pretraining's questions and is of no use to a task.
    kept = {k: v.half() for k, v in model.state_dict().items() if not k.startswith("head.")}
    save_file(kept, weights, metadata={"format": "pt"})
    model.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=False)
    config = packaged_config(NAME)
    record = {
        **{key: config[key] for key in ("architecture", "model_args", "pretrained_cfg", "license")},
        "made_by": {
            "command": "python -m glora_deploy.training.demo_backbone.pretrain_demo",
            "data": "drawn letters, invented characters, shapes and textures; no image of a task",
            "images": n_images,
            "epochs": n_epochs,
            "seed": seed,
            "training_seconds": round(seconds),
            "torch": torch.__version__.partition("+")[0],
        },
        "held_out": measure(model, held_out),
        "ridge_probe_test_accuracy": {
            "pretrained": probe_tasks(model),
            "untrained": probe_tasks(build_model(seed)),
        },
    }
    (out / f"{NAME}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    logger.info("%s written after %.0f s", weights, time.perf_counter() - started)


def build_model(seed: int) -> nn.Module:
    """The demo backbone, untrained, with one output per answer."""
    backbone = load_backbone(NAME, checkpoint=f"random:{seed}")
    return backbone.build(len(SUBJECTS) + len(GROUNDS) + len(NUMBERS), seed=seed)


def draw_pool(n: int, seed: int) -> PretrainImages:
    """Draw n images with a progress bar."""
    parts = []
    with progress_bars() as bars:
        bar = bars.add_task("drawing", total=n, note="")
        for part in draw_images(n, np.random.default_rng(seed)):
            parts.append(part)
            bars.advance(bar, len(part.pixels))
    return PretrainImages(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.subjects for part in parts]),
        np.concatenate([part.grounds for part in parts]),
        np.concatenate([part.numbers for part in parts]),
    )


def _train(
    model: nn.Module, pool: PretrainImages, checkpoint: Path, *, n_epochs: int, seed: int
) -> float:
    """Train in place, going on from the checkpoint if there is one; seconds over all its runs."""
    steps_per_epoch = len(pool.pixels) // BATCH_SIZE
    optimizers = _build_optimizers(model)
    schedules = [
        OneCycleLR(
            optimizer,
            max_lr=LEARNING_RATE,
            total_steps=n_epochs * steps_per_epoch,
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    parts: list[torch.optim.Optimizer | OneCycleLR] = [*optimizers, *schedules]
    first_epoch, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for part, saved in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        first_epoch, seconds = state["epochs"], state["seconds"]
    with progress_bars() as bars:
        bar = bars.add_task(
            "pretraining",
            total=n_epochs * steps_per_epoch,
            completed=first_epoch * steps_per_epoch,
            note="",
        )
        for epoch in range(first_epoch, n_epochs):
            started, recent = time.perf_counter(), deque[float](maxlen=50)
            model.train()
            for batch in _batches(pool, np.random.default_rng([seed, epoch])):
                loss = answer_loss(model(batch.x), batch)
                model.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for part in parts:
                    part.step()
                recent.append(loss.item())
                bars.advance(bar)
                bars.update(bar, note=f"loss {np.mean(recent):.3f}")
            seconds += time.perf_counter() - started
            state = {
                "model": model.state_dict(),
                "parts": [part.state_dict() for part in parts],
                "epochs": epoch + 1,
                "seconds": seconds,
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    return seconds


def _build_optimizers(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else.

    In the same time on a CPU Muon got further than AdamW at any batch size tried.
    """
    named = dict(model.named_parameters())
    matrices = [n for n, p in named.items() if n.startswith("blocks.") and p.ndim == 2]
    muon = torch.optim.Muon(
        [named.pop(name) for name in matrices],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        named.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True
    )
    return muon, adam


@dataclass(frozen=True, slots=True)
class _Batch:
    x: Tensor
    subjects: Tensor
    grounds: Tensor
    numbers: Tensor


def _batches(pool: PretrainImages, rng: np.random.Generator | None) -> Iterator[_Batch]:
    """Whole batches in random order, or all images in order without a generator."""
    n = len(pool.pixels)
    order = np.arange(n) if rng is None else rng.permutation(n)[: n - n % BATCH_SIZE]
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield _Batch(
            torch.from_numpy(normalise(pool.pixels[chosen], PREPROCESSING)),
            torch.from_numpy(pool.subjects[chosen]),
            torch.from_numpy(pool.grounds[chosen]),
            torch.from_numpy(pool.numbers[chosen]),
        )


def answer_loss(outputs: Tensor, batch: _Batch) -> Tensor:
    """Cross-entropy of subject and ground, squared error of the numbers that have an answer."""
    subjects, grounds, numbers = _split_answers(outputs)
    known = ~torch.isnan(batch.numbers)
    return (
        F.cross_entropy(subjects, batch.subjects)
        + 0.3 * F.cross_entropy(grounds, batch.grounds)
        + 3.0 * F.mse_loss(numbers[known], batch.numbers[known])
    )


def _split_answers(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    subjects, grounds, numbers = torch.split(
        outputs, [len(SUBJECTS), len(GROUNDS), len(NUMBERS)], dim=1
    )
    return subjects, grounds, numbers


def measure(model: nn.Module, pool: PretrainImages) -> dict[str, float]:
    """How well the answers are known on images that were not trained on."""
    with torch.inference_mode():
        model.eval()
        outputs = torch.cat([model(batch.x) for batch in _batches(pool, None)])
    subjects, grounds, numbers = (answers.numpy() for answers in _split_answers(outputs))
    return {
        "subject_accuracy": round(float(np.mean(subjects.argmax(1) == pool.subjects)), 4),
        "ground_accuracy": round(float(np.mean(grounds.argmax(1) == pool.grounds)), 4),
        "number_error_rms": round(float(np.nanmean((numbers - pool.numbers) ** 2) ** 0.5), 4),
    }


def probe_tasks(model: nn.Module) -> dict[str, float]:
    """Test accuracy of a linear probe on the frozen features, per built-in task at seed 0."""
    accuracies = {}
    for name in BUILT_IN_TASKS:
        task = load_task(name, seed=0)
        splits = (task.train, task.val, task.test)
        train, val, test = (_features(model, split) for split in splits)
        labels = (task.train.labels, task.val.labels, task.test.labels)
        accuracies[name] = round(ridge_accuracy((train, val, test), labels), 4)
    return accuracies


def _features(model: Any, images: ImageSet) -> NDArray[np.float32]:
    """What the head would see, ``(n, d)``."""
    x = preprocess_batch((images.image(i) for i in range(len(images))), PREPROCESSING)
    with torch.inference_mode():
        model.eval()
        features = model.forward_features(torch.from_numpy(x))
        return cast(NDArray[np.float32], model.forward_head(features, pre_logits=True).numpy())


if __name__ == "__main__":
    app()
