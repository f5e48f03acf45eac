"""A training step of the supernet: without dense weight gradients, with them, and plain LoRA's.

All steps are taken by turns on the same images, those of the supernet on the same subnets, and
everything printed comes from this one run::

    python benchmarks/supernet_step.py --backbone vit_small_patch16_224 --batch-size 16

``dense`` is the authors' formulation (``GLoRA/layer.py`` of Arnav0400/ViT-Slim): the effective
weight of every layer is formed, and autograd computes its gradient. ``lora`` is the floor, rank 8
on the same layers. Memory is the most of one step beyond the network, counted by torch as tensors
that live; on a CPU by its profiler.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.backbones.load import load_backbone
from glora_deploy.glora.forms import Subnet
from glora_deploy.glora.layer import GloraLayer
from glora_deploy.machine import Machine
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.methods import METHODS
from glora_deploy.training.supernet import Supernet, build_supernet

N_CLASSES = 10
RANK = 8


@contextmanager
def dense() -> Iterator[None]:
    """Every layer of every supernet computes densely."""
    own = GloraLayer.forward
    GloraLayer.forward = GloraLayer.dense_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        GloraLayer.forward = own  # type: ignore[method-assign]


class LoraLinear(nn.Module):
    """``x @ w0.T + (x @ up.T) @ down.T``, as PEFT computes it, without dropout."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.up = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.down = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """Of ``(..., d_in)``."""
        added = F.linear(F.linear(x, self.up), self.down)
        return cast(Tensor, self.base(x)) + added


def with_lora(supernet: Supernet, model: nn.Module) -> nn.Module:
    """The vanilla network with LoRA on the layers of the supernet."""
    model.requires_grad_(False)
    for name in supernet.shapes:
        parent, _, child = name.rpartition(".")
        base = cast(nn.Linear, model.get_submodule(name))
        setattr(model.get_submodule(parent), child, LoraLinear(base))
    for name in supernet.classifier:
        model.get_submodule(name).requires_grad_(True)
    return model


def stepper(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """One optimiser step, as ``training.trainer`` takes it."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of one call, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Most that one call holds at a time, beyond what lived before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    total = most = 0
    for event in cast(Any, profile.profiler).kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(arguments.backbone, checkpoint="random:0")
    config = TrainConfig.preset("short", drop_path=0.0)
    supernet = build_supernet(backbone, N_CLASSES, config, METHODS["glora"], seed=0, device=device)
    lora = with_lora(supernet, backbone.build(N_CLASSES)).to(device)
    height, width = backbone.preprocessing.size
    x = torch.randn(arguments.batch_size, 3, height, width, device=device)
    labels = torch.randint(N_CLASSES, (arguments.batch_size,), device=device)
    for model in (supernet.model, lora):
        model.train()
    ours, floor = stepper(supernet.model, x, labels), stepper(lora, x, labels)

    def theirs() -> None:
        with dense():
            ours()

    rng = random.Random(0)
    draws: dict[str, Callable[[], Subnet]] = {
        "uniform draws": lambda: supernet.space.draw(rng),
        "the largest subnet": supernet.space.largest,
    }
    where = torch.cuda.get_device_name() if device.type == "cuda" else str(Machine.here())
    print(
        f"{arguments.backbone}, batches of {arguments.batch_size}, {torch.get_num_threads()} "
        f"threads, {where}\n"
    )
    print(f"{'':<20}{'dense':>10}{'this':>10}{'lora':>10}{'dense/this':>13}{'this/lora':>12}")
    for name, draw in draws.items():
        runs = {"dense": theirs, "this": ours, "lora": floor}
        taken: dict[str, list[float]] = {each: [] for each in runs}
        for turn in range(arguments.rounds + 1):
            supernet.take(draw())
            for each, run in runs.items():
                spent = seconds(run, device)
                if turn:  # the first allocates
                    taken[each].append(spent)
        ms = {each: 1e3 * statistics.median(times) for each, times in taken.items()}
        gain = statistics.median(a / b for a, b in zip(taken["dense"], taken["this"], strict=True))
        over = statistics.median(a / b for a, b in zip(taken["this"], taken["lora"], strict=True))
        cells = "".join(f"{ms[each]:>7.0f} ms" for each in runs)
        print(f"{name:<20}{cells}{gain:>12.2f}x{over:>11.2f}x")
    supernet.take(supernet.space.largest())
    peaks = {each: peak_bytes(run, device) / 2**20 for each, run in runs.items()}
    cells = "".join(f"{peaks[each]:>6.0f} MiB" for each in runs)
    ratio, above = peaks["dense"] / peaks["this"], peaks["this"] / peaks["lora"]
    print(f"{'peak, largest':<20}{cells}{ratio:>12.2f}x{above:>11.2f}x")


if __name__ == "__main__":
    main()
