"""Every command of ``glora``: where it lies, what it does, and under which heading it is shown."""

from __future__ import annotations

from ..program import Entry

MAKE, USE, STORE = "Make", "Use", "Store"
_HERE = __package__


COMMANDS = {
    "train": Entry(
        "glora_deploy.training.cli",
        "train",
        "Train a task on a frozen backbone and store its delta.",
        MAKE,
    ),
    "export": Entry(
        "glora_deploy.export.cli.commands",
        "app",
        "Merge a task's delta into its backbone, prove the result equal, and write it out.",
        MAKE,
    ),
    "import": Entry(
        "glora_deploy.export.cli.import_adapter",
        "import_adapter",
        "Bring a PEFT adapter or an authors' GLoRA checkpoint into the store as a task.",
        MAKE,
    ),
    "extract": Entry(
        "glora_deploy.export.cli.extract",
        "extract",
        "Turn a full fine-tuning of a backbone into a delta of it, and measure what that loses.",
        MAKE,
    ),
    "pull": Entry(
        "glora_deploy.export.cli.pull",
        "pull",
        "Bring a pushed delta from the Hub into the store, verified, as a new version.",
        MAKE,
    ),
    "predict": Entry(
        f"{_HERE}.predict",
        "predict",
        "Say what images show, with the most probable labels of an exported task.",
        USE,
    ),
    "serve": Entry(
        "glora_deploy.serving.cli",
        "serve",
        "Answer for every task of a store from one backbone in memory.",
        USE,
    ),
    "evaluate": Entry(
        f"{_HERE}.evaluate",
        "evaluate",
        "Measure a version on labelled images: accuracy, each class, what is taken for what.",
        USE,
    ),
    "compare": Entry(
        f"{_HERE}.compare",
        "compare",
        "Put versions side by side: what is recorded, what differs, who is better.",
        USE,
    ),
    "report": Entry(
        f"{_HERE}.report",
        "report",
        "Write a page on a version: curves, search, forms, confusions, mistakes, features.",
        USE,
    ),
    "list": Entry(
        f"{_HERE}.list",
        "list_versions",
        "Every version of every task: accuracy, size, what was exported and whether it is proven.",
        STORE,
    ),
    "show": Entry(
        f"{_HERE}.show",
        "show",
        "One version: what it is, how it was trained, what was exported of it.",
        STORE,
    ),
    "use": Entry(f"{_HERE}.use", "use", "Make a version the one that answers.", STORE),
    "rollback": Entry(
        f"{_HERE}.use",
        "rollback",
        "Make the version created before the current one the one that answers.",
        STORE,
    ),
    "remove": Entry(f"{_HERE}.remove", "remove", "Remove a version and its exports.", STORE),
    "verify": Entry(
        f"{_HERE}.verify",
        "verify",
        "Read every file against its checksums; the exit status is 1 if anything is wrong.",
        STORE,
    ),
    "pack": Entry(
        f"{_HERE}.pack",
        "pack",
        "Write tasks into one file, to share them; exports are left out, they can be built again.",
        STORE,
    ),
    "unpack": Entry(
        f"{_HERE}.unpack",
        "unpack",
        "Bring packed tasks into the store, which is made if it is missing: all of them or none.",
        STORE,
    ),
    "publish": Entry(
        f"{_HERE}.publish",
        "publish",
        "Publish a version to an origin, where it answers from then on for every server that "
        "follows.",
        STORE,
    ),
    "prune": Entry(
        f"{_HERE}.prune",
        "prune",
        "Remove backbones that no version uses, and cached graphs that no export would read.",
        STORE,
    ),
    "du": Entry(
        f"{_HERE}.du",
        "du",
        "What the tasks cost on disk as deltas, and what they would cost as merged networks.",
        STORE,
    ),
}
"""In the order of the help."""
