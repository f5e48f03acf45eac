"""What a training took, as tables show it."""

from __future__ import annotations

from .store.cost_record import CostRecord


def cost_cells(cost: CostRecord | None, *, merges: bool = True) -> tuple[str, str, str]:
    """Peak memory in MB, and milliseconds for one image of the batch, merged and unmerged.

    Args:
        cost: Empty texts if it is not known.
        merges: Whether there is a network that it merges into.
    """
    if cost is None:
        return "", "", ""
    peak = cost.peak_memory_bytes
    return (
        "" if peak is None else f"{peak / 1e6:,.0f}",
        f"{cost.merged_ms / cost.batch_size:,.2f}" if merges else "cannot merge",
        f"{cost.unmerged_ms / cost.batch_size:,.2f}",
    )
