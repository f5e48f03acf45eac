"""Accuracy of every method in the same wall time, each at its own best learning rate of three.

Training and search together get ``--seconds``; how many epochs fit is found by a short training
beforehand. The learning rate is chosen on the validation split of the first seed, and the table
shows the test split at that rate, the mean of all seeds and their standard deviation::

    python benchmarks/equal_time.py --seconds 300 --tasks digits photos --results results.jsonl
    python benchmarks/equal_time.py --results results.jsonl --table

A line of results is written after each training. The same command goes on where it was stopped, and
trains nothing twice; it may run for hours. ``dinov2_checkpoint.py`` makes a real backbone to give
as ``--backbone vit_small_patch14_dinov2 --checkpoint FILE --size 98``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glora_deploy.backbones.load import load_backbone
from glora_deploy.data.load import load_task
from glora_deploy.machine import Machine
from glora_deploy.training import train
from glora_deploy.training.config import DEMO_FACTOR, SHORT_LR, TrainConfig
from glora_deploy.training.evaluate import MergedNetwork, accuracies
from glora_deploy.training.methods import METHODS
from glora_deploy.training.pixels import Pixels
from glora_deploy.training.schedule import draw_always
from glora_deploy.training.supernet import build_supernet
from glora_deploy.training.trainer import Trainer

GLORA, LARGEST, OF_LORA_SIZE = "glora", "largest subnet, fixed", "glora, as many as lora qkv"
LORA = "lora qkv"
VARIANTS: dict[str, dict[str, Any]] = {
    LORA: {"method": "lora"},
    "lora all": {"method": "lora", "include": "*"},
    "ssf": {"method": "ssf"},
    "repadapter": {"method": "repadapter"},
    "bitfit": {"method": "bitfit"},
    LARGEST: {"method": "glora"},
    GLORA: {"method": "glora"},
    "glora without lora A": {"method": "glora", "servable_mixed": True},
    OF_LORA_SIZE: {"method": "glora"},
}
FACTORS = (1 / 3, 1, 3)
"""Learning rates that are tried, by that of the short schedule."""
PILOT_EPOCHS = 2
ROW = "{:<16}{:<28}{:>9}{:>8}{:>12}{:>10}{:>16}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One training, or the short one before (``pilot``) that says how many epochs fit."""

    task: str
    variant: str
    pilot: bool
    seed: int
    lr: float
    epochs: int
    train_s: float
    """Seconds."""
    search_s: float
    """Seconds."""
    parameters: int
    """Numbers stored, classifier excluded."""
    val: float
    """Top-1 on the validation split, 0 to 1."""
    test: float
    """Top-1 on the test split, 0 to 1."""


class Results:
    """A file with a line for each result, after one that says how they came about.

    Args:
        path: The file; made if missing.
        settings: How results that are added come about; empty to read those that are there.

    Raises:
        SystemExit: If the file has results of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.settings: dict[str, Any] = json.loads(lines[0]) if lines else dict(settings)
        if settings and self.settings != settings:
            raise SystemExit(f"{path}: these results are of {self.settings}, not of {settings}")
        self.known = [Result(**json.loads(line)) for line in lines[1:]]
        if not lines:
            path.write_text(json.dumps(self.settings) + "\n", "utf-8")

    def find(self, **wanted: Any) -> list[Result]:
        """Those with these values."""
        return [each for each in self.known if wanted.items() <= asdict(each).items()]

    def add(self, result: Result) -> Result:
        """Keep one."""
        self.known.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result


class Bench:
    """Trains what is missing.

    Args:
        arguments: Of the command line.
        results: What is known.
    """

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        self.arguments = arguments
        self.results = results

    def run(self) -> None:
        """All of it: rates first, then the other seeds at the best one."""
        for task in self.arguments.tasks:
            for name in self.arguments.variants:
                base = METHODS[VARIANTS[name]["method"]].short_lr or SHORT_LR
                if self.arguments.backbone == "demo-vit":
                    base *= DEMO_FACTOR
                for factor in FACTORS:
                    self.train(task, name, base * factor, seed=0)
                lr = best_rate(self.results.find(task=task, variant=name, pilot=False, seed=0))
                for seed in range(1, self.arguments.seeds):
                    self.train(task, name, lr, seed=seed)

    def train(self, task: str, name: str, lr: float, *, seed: int) -> Result:
        """One training of as many epochs as fit, unless it is known.

        Raises:
            SystemExit: If not even the epochs of the pilot fit.
        """
        known = self.results.find(task=task, variant=name, pilot=False, seed=seed, lr=lr)
        if known:
            return known[0]
        pilots = self.results.find(task=task, variant=name, pilot=True)
        pilot = pilots[0] if pilots else self.one(task, name, lr, PILOT_EPOCHS, seed, pilot=True)
        left = self.arguments.seconds - pilot.search_s
        epochs = int(left / (pilot.train_s / PILOT_EPOCHS))
        if epochs < PILOT_EPOCHS:
            raise SystemExit(f"{name}: {self.arguments.seconds} seconds are too few on {task}")
        return self.one(task, name, lr, epochs, seed, pilot=False)

    def one(
        self, task: str, name: str, lr: float, epochs: int, seed: int, *, pilot: bool
    ) -> Result:
        """Train so many epochs, and tell."""
        measured = self.largest if name == LARGEST else self.by_api
        result = Result(
            task=task,
            variant=name,
            pilot=pilot,
            seed=seed,
            lr=lr,
            epochs=epochs,
            **measured(task, name, lr, epochs, seed),
        )
        what = "pilot" if pilot else f"val {result.val:.1%}"
        print(f"{task}, {name}, lr {lr:.2g}, seed {seed}, {epochs} epochs: {what}", flush=True)
        return self.results.add(result)

    def by_api(self, task: str, name: str, lr: float, epochs: int, seed: int) -> dict[str, Any]:
        """As ``glora train`` does."""
        settings = dict(VARIANTS[name])
        if name == OF_LORA_SIZE:
            lora = self.results.find(variant=LORA)
            if not lora:
                raise SystemExit(f"{OF_LORA_SIZE}: train {LORA} before it")
            settings["max_parameters"] = lora[0].parameters
        with tempfile.TemporaryDirectory() as store:
            (outcome,) = train(
                "task",
                store=store,
                data=task,
                lr=lr,
                epochs=epochs,
                seed=seed,
                backbone=self.arguments.backbone,
                checkpoint=self.arguments.checkpoint,
                input_size=self.arguments.size,
                **settings,
            )
        return {
            "train_s": outcome.train_s,
            "search_s": outcome.search_s,
            "parameters": outcome.n_parameters,
            "val": outcome.val_accuracy,
            "test": outcome.test_accuracy,
        }

    def largest(self, task: str, name: str, lr: float, epochs: int, seed: int) -> dict[str, Any]:
        """Every support in its largest form at every step, and no search."""
        size = self.arguments.size
        backbone = load_backbone(
            self.arguments.backbone,
            checkpoint=self.arguments.checkpoint,
            input_size=None if size is None else (size, size),
        )
        data = load_task(task, seed=seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        splits = [
            Pixels(each, backbone.preprocessing, device)
            for each in (data.train, data.val, data.test)
        ]
        config = TrainConfig.preset("short", lr=lr, epochs=epochs)
        supernet = build_supernet(
            backbone, data.n_classes, config, METHODS["glora"], seed=seed, device=device
        )
        subnet = supernet.space.largest()
        trainer = Trainer(supernet, splits[0], config, random.Random(f"{seed}/training"))
        trainer.train(draw_always(subnet))
        merged = MergedNetwork(supernet, backbone.build(data.n_classes).to(device))
        network = merged.become(subnet)
        (val,), (test,) = (accuracies([network], split) for split in splits[1:])
        return {
            "train_s": trainer.seconds,
            "search_s": 0.0,
            "parameters": subnet.n_parameters(supernet.shapes),
            "val": val,
            "test": test,
        }


def best_rate(results: Sequence[Result]) -> float:
    """By the validation split; of equals the lowest."""
    return max(results, key=lambda each: (each.val, -each.lr)).lr


def print_table(results: Results) -> None:
    """The test accuracies at the best rates."""
    print(", ".join(f"{name} {value}" for name, value in results.settings.items()), "\n")
    print(ROW.format("task", "", "lr", "epochs", "numbers", "seconds", "test"))
    for task in dict.fromkeys(each.task for each in results.known):
        for name in VARIANTS:
            tried = results.find(task=task, variant=name, pilot=False, seed=0)
            if not tried:
                continue
            found = results.find(task=task, variant=name, pilot=False, lr=best_rate(tried))
            tests = [100 * each.test for each in found]
            spread = f" ± {statistics.stdev(tests):.1f}" if len(tests) > 1 else " (1 seed)"
            print(
                ROW.format(
                    task[-15:],
                    name,
                    f"{found[0].lr:.2g}",
                    found[0].epochs,
                    f"{statistics.fmean(each.parameters for each in found):,.0f}",
                    f"{statistics.fmean(each.train_s + each.search_s for each in found):.0f}",
                    f"{statistics.fmean(tests):.1f} %{spread}",
                )
            )


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="file, made if missing")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    parser.add_argument("--tasks", nargs="+", default=["digits", "photos"], metavar="DATA")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120, help="training and search together")
    parser.add_argument("--backbone", default="demo-vit")
    parser.add_argument("--checkpoint", help="local weights of the backbone")
    parser.add_argument("--size", type=int, help="side of the input in pixels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "seconds": arguments.seconds,
        "threads": arguments.threads,
        "machine": str(Machine.here()),
    }
    results = Results(arguments.results, {} if arguments.table else settings)
    if not arguments.table:
        Bench(arguments, results).run()
    print_table(results)


if __name__ == "__main__":
    main()
