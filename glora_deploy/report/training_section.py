"""How the training went: loss, accuracy, learning rate and seconds, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING

from ..store.history import EpochRecord, History, StageRecord
from ..wording import count_of
from .blocks import Figure, Section, listed, percent
from .canvas import Drawing, draw, in_percent
from .palette import ACCENT, MUTED, SECOND, THIRD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVES: tuple[tuple[str, str, Callable[[EpochRecord], float]], ...] = (
    ("loss", "Loss", attrgetter("loss")),
    ("accuracy", "Accuracy", attrgetter("accuracy")),
    ("rate", "Learning rate", attrgetter("learning_rate")),
    ("seconds", "Seconds per epoch", attrgetter("seconds")),
)
_FEW = 25
"""So many epochs have a point each."""


def training_section(
    history: History | None, why_not: str, *, as_searched: bool = False
) -> Section:
    """The curves of every stage of a training.

    Args:
        history: Of the version; None if it has none.
        why_not: Why it has none.
        as_searched: Whether the weights are those before the epochs that follow the search.
    """
    title = "Training"
    if history is None:
        return Section(name="training", title=title, missing=why_not)
    figure = Figure(
        drawings=tuple(_drawing(history, *each) for each in _CURVES),
        alt=_in_words(history),
        caption=_caption(history, as_searched=as_searched),
    )
    return Section(name="training", title=title, blocks=(figure,))


def _drawing(
    history: History, name: str, title: str, value: Callable[[EpochRecord], float]
) -> Drawing:
    def paint(axes: list[Axes]) -> None:
        (axis,) = axes
        for stage in history.stages:
            _paint_stage(axis, stage, value, is_accuracy=name == "accuracy")
        boundary = _boundary(history.stages[0])
        if boundary is not None:
            axis.axvline(boundary + 0.5, color=MUTED, linewidth=1, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
        if name == "accuracy":
            in_percent(axis)
        else:
            highest = max(value(each) for stage in history.stages for each in stage.epochs)
            axis.set_ylim(0, 1.08 * highest or 1)
        if name == "accuracy" or len(history.stages) > 1:
            axis.legend(loc="best")

    return draw(f"training-{name}", paint, width=4, height=2.5)


def _paint_stage(
    axis: Axes, stage: StageRecord, value: Callable[[EpochRecord], float], *, is_accuracy: bool
) -> None:
    retraining = stage.stage == "retraining"
    axis.plot(
        [each.epoch for each in stage.epochs],
        [value(each) for each in stage.epochs],
        color=THIRD if retraining else ACCENT,
        linestyle="--" if retraining else "-",
        marker="o" if len(stage.epochs) <= _FEW else "",
        markersize=3,
        label=_label(stage, is_accuracy=is_accuracy),
    )
    if is_accuracy and stage.validations:
        axis.plot(
            [each.after_epoch for each in stage.validations],
            [each.accuracy for each in stage.validations],
            color=SECOND,
            marker="D",
            markersize=6,
            linestyle="none",
            label="validation images",
        )


def _label(stage: StageRecord, *, is_accuracy: bool) -> str:
    if stage.stage == "retraining":
        return "retraining"
    return "training images" if is_accuracy else "training"


def _boundary(stage: StageRecord) -> int | None:
    """The epoch after which one subnet is trained alone, if epochs follow."""
    return stage.supernet_epochs if 0 < stage.supernet_epochs < stage.epochs[-1].epoch else None


def _caption(history: History, *, as_searched: bool) -> str:
    told = [
        "Loss is the cross-entropy and accuracy the top-1 on the training images, both taken "
        "before each step and averaged over the epoch, so drop path and, before the search, "
        "random subnets are in them."
    ]
    if (boundary := _boundary(history.stages[0])) is not None:
        told.append(
            f"Up to the dotted line, {count_of(boundary, 'epoch')}, each step trains one subnet "
            "of the supernet; after it, the subnet that the search chose is trained alone."
        )
    if as_searched:
        told.append(
            "These epochs made it no better, so the weights that are stored are those at the "
            "dotted line."
        )
    if any(stage.validations for stage in history.stages):
        told.append(
            "Diamonds are measured on the validation images, with the network merged as it ships."
        )
    if len(history.stages) > 1:
        told.append(
            "Retraining, dashed, starts anew on training and validation images together, so the "
            "validation accuracy is that of the first training."
        )
    if (first := history.stages[0].epochs[0].epoch) > 1:
        told.append(f"Epochs before {first} were trained by a release that kept no history.")
    return " ".join(told)


def _in_words(history: History) -> str:
    stages = []
    for stage in history.stages:
        first, last = stage.epochs[0], stage.epochs[-1]
        stages.append(
            f"{stage.stage}: loss from {first.loss:.3f} in epoch {first.epoch} to {last.loss:.3f} "
            f"in epoch {last.epoch}, training accuracy from {percent(first.accuracy)} to "
            f"{percent(last.accuracy)}"
        )
    return f"Four curves over the epochs. {listed(stages)}."
