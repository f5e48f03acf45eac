"""How the training went: loss, accuracy, learning rate and seconds, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..store.history import History, StageRecord
from ..wording import count_of
from .blocks import Figure, Section, listed, percent
from .canvas import draw
from .palette import ACCENT, MUTED, SECOND, THIRD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"training": ACCENT, "retraining": THIRD, "lora": ACCENT}
_FEW = 25
"""So many epochs have a point each."""


def training_section(history: History | None, why_not: str) -> Section:
    """The curves of every stage of a training.

    Args:
        history: Of the version; None if it has none.
        why_not: Why it has none.
    """
    title = "Training"
    if history is None:
        return Section(name="training", title=title, missing=why_not)
    figure = Figure(
        name="training-curves",
        drawing=draw(
            "training", lambda axes: _paint(axes, history), width=8, height=5, rows=2, columns=2
        ),
        alt=_in_words(history),
        caption=_caption(history),
    )
    return Section(name="training", title=title, blocks=(figure,))


def _paint(axes: list[Axes], history: History) -> None:
    loss, accuracy, rate, seconds = axes
    for axis, title in zip(
        axes,
        ("Loss", "Accuracy", "Learning rate", "Seconds per epoch"),
        strict=True,
    ):
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
    for stage in history.stages:
        x = [each.epoch for each in stage.epochs]
        mark = "o" if len(x) <= _FEW else ""
        for axis, values in (
            (loss, [each.loss for each in stage.epochs]),
            (accuracy, [each.accuracy for each in stage.epochs]),
            (rate, [each.learning_rate for each in stage.epochs]),
            (seconds, [each.seconds for each in stage.epochs]),
        ):
            label = f"{stage.stage}" if len(history.stages) > 1 else "training images"
            axis.plot(
                x,
                values,
                color=_COLOURS[stage.stage],
                marker=mark,
                markersize=3,
                linestyle="--" if stage.stage == "retraining" else "-",
                label=label,
            )
        if stage.validations:
            accuracy.plot(
                [each.after_epoch for each in stage.validations],
                [each.accuracy for each in stage.validations],
                color=SECOND,
                marker="D",
                markersize=6,
                linestyle="none",
                label="validation images",
            )
    boundary = _boundary(history.stages[0])
    if boundary is not None:
        for axis in axes:
            axis.axvline(boundary + 0.5, color=MUTED, linewidth=1, linestyle=":")
        loss.annotate(
            " search",
            (boundary + 0.5, 1),
            xycoords=("data", "axes fraction"),
            color=MUTED,
            fontsize=8,
            va="top",
        )
    loss.set_ylim(bottom=0)
    seconds.set_ylim(bottom=0)
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    accuracy.legend(loc="lower right")


def _boundary(stage: StageRecord) -> int | None:
    """The epoch after which one subnet is trained alone, if epochs follow."""
    return stage.supernet_epochs if 0 < stage.supernet_epochs < stage.epochs[-1].epoch else None


def _caption(history: History) -> str:
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
    if any(stage.validations for stage in history.stages):
        told.append(
            "Diamonds are measured on the validation images, with the network merged as it ships."
        )
    if len(history.stages) > 1:
        told.append("Retraining, dashed, starts anew on training and validation images together.")
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
