"""Options that several of the export commands take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glora_deploy.parity import DEFAULT_LIMITS

ImagesOption = Annotated[
    int, typer.Option("--images", min=1, help="Test images that the parity check looks at.")
]
MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        min=0,
        help="Largest logit error allowed in this precision, as a share of the logits' spread "
        f"(fp32 {DEFAULT_LIMITS['fp32'].max_error:g}, fp16 {DEFAULT_LIMITS['fp16'].max_error:g}, "
        f"bf16 {DEFAULT_LIMITS['bf16'].max_error:g}).",
        show_default=False,
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="timm name of the backbone, if the store does not keep it."),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Local weights of that backbone (.safetensors, .npz, .pth, or FILE#PART of one).",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="HF_TOKEN",
        help="Access token for the Hub; the one that is logged in by default.",
        show_default=False,
        show_envvar=True,
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")
]
