"""Which cached ONNX graph belongs to a network: a digest of all that decides its shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version

from .manifest import Manifest

OPSET = 20
"""TensorRT-RTX 1.7 builds no fp32 graph with the ``Attention`` operator of opset 23 and later."""

LIBRARIES = ("torch", "timm", "onnx", "onnx-ir", "onnxscript")
"""Those that shape the graph."""


def skeleton_key(
    *,
    architecture: str,
    model_args: Mapping[str, object],
    n_classes: int,
    input_size: tuple[int, int, int],
    opset: int,
) -> str:
    """The sha256, in hex, of a network's shape and of the libraries that its graph comes from.

    Args:
        architecture: timm name without a tag.
        model_args: Constructor arguments, JSON values only.
        n_classes: Rows of the classifier.
        input_size: ``(c, h, w)`` of one image.
        opset: Of the graph.

    Raises:
        PackageNotFoundError: If one of ``LIBRARIES`` is not installed.
    """
    facts = {
        "architecture": architecture,
        "model_args": dict(model_args),
        "n_classes": n_classes,
        "input_size": input_size,
        "opset": opset,
        "versions": {library: version(library) for library in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def skeleton_key_of(manifest: Manifest) -> str:
    """The key of the graph that exports of this artifact use."""
    return skeleton_key(
        architecture=manifest.backbone.name,
        model_args=manifest.backbone.model_args,
        n_classes=len(manifest.labels),
        input_size=manifest.backbone.input_size,
        opset=OPSET,
    )
