"""Test images as the classifier sees them, before and after: figure 5 of arXiv:2306.07967."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..wording import count_of
from .blocks import Figure, Section, percent
from .canvas import draw
from .embedding import FEWEST, share_of_like_neighbours, t_sne
from .palette import CLASSES, MARKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..evaluation.evaluate_version import Evaluation

MOST_POINTS = 600
MOST_NAMES = 24
"""So many classes are named beside the map."""
_TITLE = "Features before and after"


def drawn_images(evaluation: Evaluation) -> list[int]:
    """Which images the map shows: all, or ``MOST_POINTS`` drawn, the same at every call."""
    n = len(evaluation.predictions.targets)
    if n <= MOST_POINTS:
        return list(range(n))
    chosen = np.random.default_rng(0).choice(n, MOST_POINTS, replace=False)
    return sorted(chosen.tolist())


def no_features(why_not: str) -> Section:
    """The section without a map."""
    return Section(name="features", title=_TITLE, missing=why_not)


def features_section(
    frozen: NDArray[np.float32],
    merged: NDArray[np.float32],
    targets: NDArray[np.int64],
    labels: tuple[str, ...],
    *,
    n_images: int,
) -> Section:
    """Both maps side by side.

    Args:
        frozen: Features of the frozen backbone, ``(n, n_features)``.
        merged: Features of the merged network, ``(n, n_features)``.
        targets: Class of each, ``(n,)``.
        labels: Name of each class.
        n_images: Images that they were drawn from.
    """
    n = len(targets)
    if n < FEWEST:
        return no_features(f"A map needs {FEWEST} images at least, there are {n}.")
    maps = [t_sne(features, seed=0) for features in (frozen, merged)]
    shares = [share_of_like_neighbours(features, targets) for features in (frozen, merged)]
    present = np.unique(targets).tolist()
    named = len(present) <= MOST_NAMES
    figure = Figure(
        name="features",
        drawing=draw(
            "features",
            lambda axes: _paint(axes, maps, targets, labels, present, shares, named=named),
            width=8,
            height=4.2 if named else 3.8,
            columns=2,
        ),
        alt=(
            f"Two maps of {count_of(n, 'image')}, coloured by class. The nearest neighbour is of "
            f"the same class for {percent(shares[0])} before, {percent(shares[1])} after."
        ),
        caption=(
            f"{_which(n, n_images)} What reaches the classifier, left in the frozen backbone, "
            "right in the merged network, each laid out by t-SNE (perplexity 30 at most, seed 0), "
            "which keeps neighbours together: sizes of clusters and distances between them mean "
            "nothing. The percentage is measured before that, among the features themselves: for "
            "how many images the nearest other image is of the same class."
        ),
    )
    return Section(name="features", title=_TITLE, blocks=(figure,))


def _which(n: int, n_images: int) -> str:
    return f"All {n:,} images." if n == n_images else f"{n:,} images drawn from {n_images:,}."


def _paint(
    axes: list[Axes],
    maps: list[NDArray[np.float64]],
    targets: NDArray[np.int64],
    labels: tuple[str, ...],
    present: list[int],
    shares: list[float],
    *,
    named: bool,
) -> None:
    titles = ("Before: frozen backbone", "After: merged network")
    for axis, points, title, share in zip(axes, maps, titles, shares, strict=True):
        for place, label in enumerate(present):
            mine = points[targets == label]
            axis.scatter(
                mine[:, 0],
                mine[:, 1],
                s=14,
                color=CLASSES[place % len(CLASSES)],
                marker=MARKS[place // len(CLASSES) % len(MARKS)],
                alpha=0.8,
                linewidths=0,
                label=labels[label],
            )
        axis.set_title(title)
        axis.set_xlabel(f"like neighbours: {percent(share)}")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
    if named:
        handles, names = axes[0].get_legend_handles_labels()
        columns = min(len(names), 10 if max(map(len, names)) <= 4 else 5)
        axes[0].figure.legend(
            handles, names, loc="outside lower center", ncols=columns, handletextpad=0.1
        )
