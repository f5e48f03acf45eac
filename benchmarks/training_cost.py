"""What each method of training costs and reaches: time, memory, bytes, accuracy, on one device.

Everything printed comes from this one run, on this machine::

    python benchmarks/training_cost.py --backbone vit_base_patch16_224 --checkpoint random:0
    python benchmarks/training_cost.py --data digits --epochs 12 --methods glora lora ssf

Each method trains the same task in a process of its own, by ``glora_deploy.training.train``. Memory
is the most that tensors took on a GPU, else the most that the process took, less what it had taken
before it trained. With random weights the accuracies mean nothing and the costs are the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile

import torch

from glora_deploy.machine import Machine
from glora_deploy.training import train
from glora_deploy.training.methods import METHODS

ROW = "{:<22}{:>12}{:>12}{:>12}{:>14}{:>12}{:>9}"
RUNS: dict[str, dict[str, object]] = {
    **{name: {"method": name} for name in METHODS},
    "lora on every linear": {"method": "lora", "include": "*"},
}


def peak_bytes() -> int:
    """The most that was taken until now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_one(settings: dict[str, object]) -> dict[str, object]:
    """Train once, here."""
    import timm  # noqa: F401  # what is imported is no cost of training

    before = peak_bytes()
    with tempfile.TemporaryDirectory() as store:
        (outcome,) = train("task", store=store, **settings)  # type: ignore[arg-type]
    manifest = None if outcome.artifact is None else outcome.artifact.manifest
    return {
        "train_s": outcome.train_s,
        "search_s": outcome.search_s,
        "peak": peak_bytes() - before,
        "parameters": outcome.n_parameters,
        "bytes": 0 if manifest is None else manifest.adapter.size_bytes,
        "test": outcome.test_accuracy,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="demo-vit")
    parser.add_argument("--checkpoint", help="local weights of the backbone, or random:SEED")
    parser.add_argument("--data", default="photos", help="a task, as training takes it")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(json.loads(arguments.one))))
        return
    common = {
        "data": arguments.data,
        "backbone": arguments.backbone,
        "checkpoint": arguments.checkpoint,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
    }
    searched = {"population": arguments.population, "generations": arguments.generations}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else str(Machine.here())
    print(f"{arguments.backbone}, {arguments.data}, batches of {arguments.batch_size}, {where}\n")
    print(ROW.format("", "s/epoch", "search s", "peak MB", "numbers", "delta MB", "test"))
    for name in arguments.methods:
        searches = METHODS[str(RUNS[name]["method"])].searches
        asked = {**common, **RUNS[name], **(searched if searches else {})}
        command = [sys.executable, __file__, "--one", json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            ROW.format(
                name,
                f"{found['train_s'] / arguments.epochs:.2f}",
                f"{found['search_s']:.1f}",
                f"{found['peak'] / 1e6:.0f}",
                f"{found['parameters']:,}",
                f"{found['bytes'] / 1e6:.2f}",
                f"{found['test']:.1%}",
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
