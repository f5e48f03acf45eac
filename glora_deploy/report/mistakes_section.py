"""The mistakes that the network was surest of, as pictures."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..evaluation.evaluate_version import Evaluation
from ..wording import count_of, printable
from .blocks import Gallery, Picture, Section, percent
from .canvas import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
SIDE = 160
"""Pixels of the longer side of a picture; smaller images keep theirs."""
FEW_PIXELS = 64
_COLUMNS = 4


def mistakes_section(evaluation: Evaluation | None, why_not: str) -> Section:
    """The ``MOST`` wrong answers of the highest probability.

    Args:
        evaluation: Of the version; None if its images are not at hand.
        why_not: Why they are not.

    Raises:
        DataError: If an image can no longer be read.
    """
    title = "The surest mistakes"
    if evaluation is None:
        return Section(name="mistakes", title=title, missing=why_not)
    found = evaluation.predictions
    probabilities, predicted = found.probabilities, found.predicted
    wrong = np.flatnonzero(~found.correct)
    if not len(wrong):
        return Section(name="mistakes", title=title, missing="No image was answered wrong.")
    confidence = probabilities[wrong, predicted[wrong]]
    chosen = wrong[np.argsort(-confidence, kind="stable")[:MOST]].tolist()
    images = [_small(found.images.image(i)) for i in chosen]
    pictures = []
    for i, image in zip(chosen, images, strict=True):
        label, answer = found.labels[found.targets[i]], found.labels[predicted[i]]
        pictures.append(
            Picture(
                png=_png(image),
                is_small=max(image.size) <= FEW_PIXELS,
                alt=f"Image of the class {label}, answered as {answer}",
                lines=(
                    f"{answer} with {percent(float(probabilities[i, predicted[i]]))}",
                    f"is {label}, given {percent(float(probabilities[i, found.targets[i]]))}",
                    printable(found.images.ids[i]),
                ),
            )
        )
    sheet = draw(
        "mistakes",
        lambda axes: _paint(axes, images, pictures),
        width=8,
        height=2.4 * -(-len(images) // _COLUMNS),
        rows=-(-len(images) // _COLUMNS),
        columns=_COLUMNS,
    )
    return Section(
        name="mistakes",
        title=title,
        lead=f"{count_of(len(wrong), 'image')} of {len(found.targets):,} are answered wrong.",
        blocks=(
            Gallery(
                pictures=tuple(pictures),
                sheet=sheet,
                caption=(
                    f"The {len(pictures)} with the most probable wrong answer, which stands first; "
                    "below it the image's own class and the probability it was given. Some may be "
                    "mislabelled."
                ),
            ),
        ),
    )


def _small(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _paint(axes: list[Axes], images: list[Image.Image], pictures: list[Picture]) -> None:
    for axis in axes:
        axis.set_axis_off()
    for axis, image, picture in zip(axes, images, pictures, strict=False):
        axis.imshow(np.asarray(image), interpolation="nearest")
        axis.set_title("\n".join(picture.lines[:2]), fontsize=8, fontweight="normal", loc="center")
