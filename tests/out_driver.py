"""Replaces an --out folder in forked children that die half way; test_out_folder.py starts it.

::

    python out_driver.py FOLDER    the folder as each child left it, one for each call it died at

As ``crash_driver``, whose manner of dying it takes.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

from crash_driver import KILLED, die_at, in_child
from glora_deploy.export.out_folder import write_out
from glora_deploy.parity import Report
from glora_deploy.store import atomic_files

NAMES = ("model.onnx", "model.safetensors", "parity.json")


def make_files(folder: Path, text: str) -> dict[str, Path]:
    """Files of an export, each of which says of which one it is."""
    folder.mkdir(parents=True)
    report = Report(
        task="pets", version=text, precision="fp32", adapter_sha256="0" * 64, data="", steps=()
    )
    files = {name: folder / name for name in NAMES}
    for path in files.values():
        path.write_bytes(report.to_json())
    return files


def replace(source: dict[str, Path], out: Path, *, exchange: bool) -> None:
    """Put the files in the place of those there; ``exchange`` as systems can that swap names."""
    if not exchange:
        atomic_files._exchange = lambda a, b: False
    write_out(source, out)


def cut(folder: Path, *, exchange: bool) -> None:
    """One folder for each call that changes the disk, cut short before it, and a finished one."""
    new = make_files(folder / "new", "new")
    for n_calls in itertools.count():
        root = folder / f"{n_calls:03}"
        write_out(make_files(root / "old", "old"), root / "out")
        shutil.rmtree(root / "old")

        def act(root: Path = root, n_calls: int = n_calls) -> None:
            die_at(n_calls)
            replace(new, root / "out", exchange=exchange)

        code = in_child(act)
        if code == 0:
            return
        if code != KILLED:
            raise SystemExit(f"ended with {code} at call {n_calls}")


if __name__ == "__main__":
    for exchange in (True, False):
        cut(Path(sys.argv[1]) / ("exchange" if exchange else "renames"), exchange=exchange)
