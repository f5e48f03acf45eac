"""``glora prune``: what no version needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import one_line_errors, stdout
from ..options import StoreOption
from ..program import examples
from ..store.default_place import DEFAULT_STORE
from .sizes import mb


@examples("--dry-run", "")
def prune(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove backbones that no version uses, and cached graphs that no export would read."""
    from ..store.prune import prune as remove_unused
    from ..store.store import ArtifactStore

    with one_line_errors():
        found = remove_unused(ArtifactStore.open(store), dry_run=dry_run)
        for each in found:
            what = "kept, it is in use" if each.in_use else "would go" if dry_run else "removed"
            stdout.print(f"{each.path}: {mb(each.size_bytes)} MB, {what}", soft_wrap=True)
        total = sum(each.size_bytes for each in found if not each.in_use)
        verb = "would free" if dry_run else "freed"
        stdout.print(f"{store}: {verb} {mb(total)} MB", soft_wrap=True)
