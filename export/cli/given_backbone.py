"""The backbone that something foreign was trained on, as options name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glora_deploy.backbones.input_size import parse_size
from glora_deploy.console import wrong_usage_of

if TYPE_CHECKING:  # it brings torch
    from glora_deploy.backbones.input_size import HeightWidth

DEFAULT_BACKBONE = "vit_base_patch16_224"

BackboneNameOption = Annotated[
    str, typer.Option("--backbone", help="timm name of the backbone it was trained on.")
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="PIXELS",
        help="Side of the input in pixels, or HEIGHTxWIDTH, if not the model's own.",
    ),
]


def require_named(
    backbone: str, checkpoint: Path | None, input_size: str | None
) -> HeightWidth | None:
    """Refuse what can be wrong before weights are fetched.

    Returns:
        The input size that was asked for, ``(height, width)`` in pixels.

    Raises:
        typer.BadParameter: If there is no such backbone, it does not take the size, or the
            checkpoint's name cannot be recorded.
    """
    with wrong_usage_of("--input-size"):
        size = parse_size(input_size) if input_size else None
    from glora_deploy.backbones.checkpoint_name import require_recordable
    from glora_deploy.backbones.load import outline

    with wrong_usage_of("--backbone"):
        outline(backbone)
    if size is not None:
        with wrong_usage_of("--input-size"):
            outline(backbone, input_size=size)
    if checkpoint is not None:
        with wrong_usage_of("--checkpoint"):
            require_recordable(checkpoint)
    return size
