"""How the search went: generation by generation, and what accuracy each size of subnet reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..store.history import History, SearchRecord
from ..wording import count_of
from .blocks import Figure, Section, percent
from .canvas import draw, in_percent
from .palette import ACCENT, MUTED, SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def search_section(history: History | None, why_not: str) -> Section:
    """The progress of the search and its candidates.

    Args:
        history: Of the version; None if it has none.
        why_not: Why it has none.
    """
    title = "Search"
    if history is None:
        return Section(name="search", title=title, missing=why_not)
    search = history.search
    if search is None:
        return Section(
            name="search", title=title, missing="This method trains one fixed subnet: no search."
        )
    figure = Figure(
        drawings=(
            draw(
                "search-progress",
                lambda axes: _paint_progress(axes[0], search),
                width=4,
                height=2.8,
            ),
            draw("search-sizes", lambda axes: _paint_sizes(axes[0], search), width=4, height=2.8),
        ),
        alt=_in_words(search),
        caption=(
            "First, the best validation accuracy known after each generation. Then every subnet "
            "that was measured, by the numbers it stores; later generations are stronger in "
            "colour, and the ring is the one that was chosen: the most accurate, and of equals the "
            "smallest. An arrow down is one that was given up once it could no longer be among the "
            "best: it is at most there. All are measured with the weights that the supernet had "
            "then."
        ),
    )
    return Section(name="search", title=title, blocks=(figure,))


def _paint_progress(progress: Axes, search: SearchRecord) -> None:
    x = list(range(len(search.generations)))
    progress.plot(x, search.best_so_far(), color=ACCENT, marker="o", markersize=4)
    progress.set_title("Progress")
    progress.set_xlabel("generation, 0 is random")
    progress.locator_params(axis="x", integer=True)
    in_percent(progress)


def _paint_sizes(scatter: Axes, search: SearchRecord) -> None:
    last = max(len(search.generations) - 1, 1)
    for number, generation in enumerate(search.generations):
        for whole, marker in ((True, "o"), (False, "v")):
            shown = [each for each in generation if each.whole == whole]
            scatter.scatter(
                [each.n_parameters for each in shown],
                [each.val_accuracy for each in shown],
                color=ACCENT if whole else MUTED,
                marker=marker,
                alpha=0.25 + 0.6 * number / last,
                s=22,
                linewidths=0,
            )
    chosen = search.chosen
    scatter.scatter(
        [chosen.n_parameters],
        [chosen.val_accuracy],
        s=90,
        facecolors="none",
        edgecolors=SECOND,
        linewidths=1.8,
        label="chosen",
    )
    scatter.set_title("Accuracy against size")
    scatter.set_xlabel("parameters of the supports")
    scatter.xaxis.set_major_formatter("{x:,.0f}")
    scatter.locator_params(axis="x", nbins=4)
    in_percent(scatter)
    scatter.legend(loc="best")


def _in_words(search: SearchRecord) -> str:
    n = sum(map(len, search.generations))
    best = search.best_so_far()
    given_up = sum(not each.whole for generation in search.generations for each in generation)
    return (
        f"Two plots of {count_of(n, 'subnet')} in {count_of(len(best), 'generation')}. The best "
        f"validation accuracy rose from {percent(best[0])} to {percent(best[-1])}; "
        f"{count_of(given_up, 'subnet')} could soon no longer rank. Chosen was a subnet of "
        f"{search.chosen.n_parameters:,} parameters with {percent(search.chosen.val_accuracy)}."
    )
