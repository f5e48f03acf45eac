"""The ONNX graph of an architecture without its weights, and a cache of such graphs.

All tasks of one backbone share one graph, so tracing is paid once. A *skeleton* names every
floating-point tensor of the state dict that the network reads, and holds none of their numbers:
each is external data in ``model.safetensors``, at a place that :mod:`.write` fills in.
:mod:`.trace` makes them; reading one needs no torch.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from glora_deploy.store.atomic_files import replace_file
from glora_deploy.store.graph_key import OPSET, skeleton_key

__all__ = ["OPSET", "SCOPES", "UNREAD", "GraphCache", "GraphSpec", "layer_of"]

UNREAD = "glora_deploy.unread"
"""Metadata key: JSON list of the state-dict names that are no initializer of the graph."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key of a node: the modules it was traced in, a Python list."""

log = logging.getLogger(__name__)


def layer_of(node: onnx.NodeProto) -> str:
    """The dotted timm layer a node was traced from; empty for the network itself."""
    scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "[]")
    *modules, _ = ast.literal_eval(scopes) or [""]
    return next((name for name in reversed(modules) if not name.startswith("_empty")), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """Everything that decides what a skeleton looks like, apart from library versions."""

    architecture: str
    """timm name without a tag."""
    model_args: Mapping[str, object]
    """Constructor arguments, JSON values only."""
    n_classes: int
    input_size: tuple[int, int, int]
    """``(c, h, w)`` of one image."""
    opset: int = OPSET

    def key(self) -> str:
        """The sha256, in hex, of this spec and of the libraries that shape the graph."""
        return skeleton_key(
            architecture=self.architecture,
            model_args=self.model_args,
            n_classes=self.n_classes,
            input_size=self.input_size,
            opset=self.opset,
        )


class GraphCache:
    """Skeletons in a folder, ``<key>.onnx`` each; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, spec: GraphSpec, build: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        """The skeleton of this spec: read from the folder, else built and kept there.

        Args:
            spec: What to look for.
            build: Called only if nothing readable is there; gives the skeleton of ``spec``.

        Raises:
            ValueError: If ``build`` gives another number of classes than ``spec`` says.
        """
        path = self.folder / f"{spec.key()}.onnx"
        if (kept := _read(path)) is not None:
            return kept
        skeleton = build()
        n_classes = skeleton.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        if n_classes != spec.n_classes:
            raise ValueError(f"the skeleton must have {spec.n_classes} classes, got {n_classes}")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, skeleton.SerializeToString(), self.folder / "scratch")
        return skeleton


def _read(path: Path) -> onnx.ModelProto | None:
    try:
        skeleton = onnx.load_model(path, load_external_data=False)
        # An empty file is a model too, of nothing.
        if any(entry.key == UNREAD for entry in skeleton.metadata_props):
            return skeleton
    except FileNotFoundError:
        return None
    except DecodeError:
        pass
    log.warning("%s is damaged and is built again", path)
    return None
