"""Test images as the classifier sees them, before and after: figure 5 of arXiv:2306.07967."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..wording import count_of
from .blocks import Figure, Section, percent, shortened
from .canvas import draw
from .embedding import FEWEST, share_of_like_neighbours, t_sne
from .palette import CLASSES, MARKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..evaluation.evaluate_version import Evaluation

MOST_POINTS = 600
MOST_NAMES = 24
"""So many classes are named beside the map."""
_MAPS = (("before", "Before: frozen backbone"), ("after", "After: merged network"))
_ROW = 46
"""So many letters of the legend stand side by side, each name with a mark before it."""
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
    named = len(np.unique(targets)) <= MOST_NAMES
    drawings = tuple(
        draw(
            f"features-{name}",
            partial(
                _paint, points=points, targets=targets, labels=labels, title=title, named=named
            ),
            width=4,
            height=4.6 if named else 3.6,
        )
        for (name, title), points in zip(_MAPS, maps, strict=True)
    )
    figure = Figure(
        drawings=drawings,
        alt=(
            f"Two maps of {count_of(n, 'image')}, coloured by class. The nearest neighbour is of "
            f"the same class for {percent(shares[0])} before, {percent(shares[1])} after."
        ),
        caption=(
            f"{_which(n, n_images)} What reaches the classifier, in the frozen backbone and "
            "in the merged network, each laid out by t-SNE (perplexity 30 at most, seed 0), "
            "which keeps neighbours together: sizes of clusters and distances between them mean "
            f"nothing. Measured among the features themselves, the nearest other image is of the "
            f"same class for {percent(shares[0])} of the images before, {percent(shares[1])} after."
        ),
    )
    return Section(name="features", title=_TITLE, blocks=(figure,))


def _which(n: int, n_images: int) -> str:
    return f"All {n:,} images." if n == n_images else f"{n:,} images drawn from {n_images:,}."


def _paint(
    axes: list[Axes],
    *,
    points: NDArray[np.float64],
    targets: NDArray[np.int64],
    labels: tuple[str, ...],
    title: str,
    named: bool,
) -> None:
    (axis,) = axes
    for place, label in enumerate(np.unique(targets).tolist()):
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
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if named:
        handles, names = axis.get_legend_handles_labels()
        names = [shortened(name) for name in names]
        columns = max(1, min(5, _ROW // (max(map(len, names)) + 4)))
        axis.figure.legend(
            handles, names, loc="outside lower center", ncols=columns, handletextpad=0.1
        )
