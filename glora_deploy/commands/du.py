"""``glora du``: what a store takes on disk."""

from __future__ import annotations

from ..console import one_line_errors, print_table
from ..options import StoreOption
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .sizes import artifacts_of, mb, merged_bytes, size_bytes


@examples("", "--store shared/artifacts")
def du(store: StoreOption = DEFAULT_STORE) -> None:
    """What the tasks cost on disk as deltas, and what they would cost as merged networks."""
    from ..store.reader import BACKBONE_WEIGHTS, BACKBONES
    from ..store.store import ArtifactStore

    with one_line_errors():
        opened = ArtifactStore.open(store)
        sizes = opened.sizes()
        rows, merged_total = [], 0
        for task, size in sizes.items():
            merged = sum(merged_bytes(opened, artifact) for artifact in artifacts_of(opened, task))
            merged_total += merged
            rows.append((task, mb(size.delta_bytes), mb(merged), mb(size.export_bytes)))
        deltas = sum(size.delta_bytes for size in sizes.values())
        exports = sum(size.export_bytes for size in sizes.values())
        backbones = sum(map(size_bytes, (store / BACKBONES).glob(f"*/{BACKBONE_WEIGHTS}")))
        rows.append(("all tasks", mb(deltas), mb(merged_total), mb(exports)))
        rows.append(("shared backbones", mb(backbones), "", ""))
        columns = ("task", "deltas MB", "as merged fp32 MB", "exports on disk MB")
        print_table(str(store), columns, rows, right=columns[1:])
