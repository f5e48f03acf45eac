"""The backbones that ship inside this package, small enough to train a demo on two cores."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, cast

PACKAGED = ("demo-vit",)


def packaged_config(name: str) -> dict[str, Any]:
    """Architecture, model_args and pretrained_cfg of a packaged backbone.

    Raises:
        FileNotFoundError: If no backbone of this name ships with the package.
    """
    text = resources.files(__package__).joinpath(f"weights/{name}.json").read_text("utf-8")
    return cast(dict[str, Any], json.loads(text))
