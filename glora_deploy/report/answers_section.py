"""How good the answers are: confusions, classes one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..evaluation.evaluate_version import Evaluation
from ..evaluation.metrics import ClassMetrics, Metrics
from ..wording import count_of
from .blocks import Figure, Section, Table, listed, percent, shortened
from .canvas import draw, fill_cell, fill_cells
from .palette import ACCENT, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 16
"""So many classes have a numbered cell each; more are one picture."""
MOST_NAMES = 40
"""So many classes are named at the edges."""
MOST_ROWS = 200
"""Rows of the table of classes."""


def answers_section(evaluation: Evaluation | None, why_not: str) -> Section:
    """Confusion matrix, commonest mistakes and every class.

    Args:
        evaluation: Of the version; None if its images are not at hand.
        why_not: Why they are not.
    """
    title = "Answers"
    if evaluation is None:
        return Section(name="answers", title=title, missing=why_not)
    metrics = evaluation.metrics
    low, high = metrics.interval
    lead = (
        f"{metrics.n_correct:,} of {count_of(metrics.n_images, 'image')} of the {evaluation.split} "
        f"split are answered right: {percent(metrics.accuracy)}, with a 95% interval of "
        f"{percent(low)} to {percent(high)}. The mean over the classes is "
        f"{percent(metrics.balanced_accuracy)}. "
        f"Mean confidence is {percent(metrics.mean_confidence)}, with an expected calibration "
        f"error of {percent(metrics.calibration_error)}."
    )
    return Section(
        name="answers",
        title=title,
        lead=lead,
        blocks=(_confusion(metrics), *_confused(metrics), _classes(metrics)),
    )


def _confusion(metrics: Metrics) -> Figure:
    n = len(metrics.labels)
    side = max(3.6, min(6.6, 1.4 + 0.34 * n))
    return Figure(
        drawings=(
            draw(
                "confusion",
                lambda axes: _paint_confusion(axes[0], metrics),
                width=side,
                height=side,
            ),
        ),
        alt=f"Confusion matrix of {count_of(n, 'class')}. {_mistakes_in_words(metrics)}",
        caption=(
            "Images by their class (row) and by the answer (column); a row that is right "
            "throughout has all its colour on the diagonal. The stronger the colour, the larger "
            "the share of the row."
        ),
    )


def _paint_confusion(axis: Axes, metrics: Metrics) -> None:
    counts = metrics.confusion
    n = len(metrics.labels)
    totals = counts.sum(1, keepdims=True)
    shares = counts / totals.clip(min=1)
    if n <= MOST_CELLS:
        for row in range(n):
            for column in range(n):
                share, count = float(shares[row, column]), int(counts[row, column])
                if count:
                    # A single mistake among thousands must be seen too.
                    fill_cell(axis, column, row, colour=ACCENT, strength=0.1 + 0.9 * share)
                    axis.text(
                        column,
                        row,
                        f"{count:,}",
                        ha="center",
                        va="center_baseline",
                        fontsize=8,
                        color=PAPER if share > 0.55 else INK,
                    )
    else:
        fill_cells(axis, shares, colour=ACCENT)
    axis.set_xlim(-0.5, n - 0.5)
    axis.set_ylim(n - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    if n <= MOST_NAMES:
        names = [shortened(label) for label in metrics.labels]
        axis.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axis.set_yticks(range(n), names)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")


def _mistakes_in_words(metrics: Metrics) -> str:
    pairs = metrics.most_confused(3)
    if not pairs:
        return "No image is answered wrong."
    told = [f"{each.label} taken for {each.predicted} ({each.n_images:,})" for each in pairs]
    return f"The commonest mistakes: {listed(told)}."


def _confused(metrics: Metrics) -> tuple[Table, ...]:
    pairs = metrics.most_confused(10)
    if not pairs:
        return ()
    images = {each.label: each.n_images for each in metrics.per_class}
    rows = tuple(
        (
            each.label,
            each.predicted,
            f"{each.n_images:,}",
            percent(each.n_images / images[each.label]),
        )
        for each in pairs
    )
    return (
        Table(
            caption="The commonest mistakes",
            head=("class", "taken for", "images", "of the class"),
            rows=rows,
            numbers=frozenset({2, 3}),
        ),
    )


def _classes(metrics: Metrics) -> Table:
    classes = sorted(metrics.per_class, key=_recall)
    shown = classes[:MOST_ROWS]
    left = len(classes) - len(shown)
    cut = f"; {count_of(left, 'class')} that are better are left out" if left else ""
    return Table(
        caption=f"Every class, the least accurate first{cut}",
        head=("class", "images", "right", "recall", "precision", "F1"),
        rows=tuple(
            (
                each.label,
                f"{each.n_images:,}",
                f"{each.n_correct:,}",
                percent(each.recall),
                percent(each.precision),
                percent(each.f1),
            )
            for each in shown
        ),
        numbers=frozenset(range(1, 6)),
        folded=f"All {count_of(len(shown), 'class')}" if len(shown) > 20 else "",
    )


def _recall(each: ClassMetrics) -> float:
    return 2.0 if each.recall is None else each.recall
