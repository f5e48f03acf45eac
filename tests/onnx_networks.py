"""Small networks of every family for the ONNX tests; their graphs are traced once per run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from glora_deploy.export.onnx_model.trace import trace_graph

SIZE = 32
N_CLASSES = 5
N_IMAGES = 5  # odd, and neither the size of the example the exporter traces nor 1

_VIT: dict[str, Any] = {"embed_dim": 48, "num_heads": 3}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": SIZE, "depth": 2, **_VIT}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 28, "depth": 1, **_VIT}),
    "relpos": ("vit_relpos_small_patch16_rpn_224", {"img_size": SIZE, "depth": 1, **_VIT}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        # The second block shifts its windows: the graph holds a mask.
        {"img_size": SIZE, "depths": (2,), "num_heads": (2,), "embed_dim": 16, "window_size": 4},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientnet_lite": ("efficientnet_lite0", {}),
}
KINDS = [
    pytest.param(kind, marks=[pytest.mark.slow] if kind == "efficientnet_lite" else [])
    for kind in NETWORKS
]


def input_size(kind: str) -> tuple[int, int, int]:
    """Channels, height and width that a network of this kind takes."""
    side = NETWORKS[kind][1].get("img_size", SIZE)
    return (3, side, side)


def make_network(kind: str, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose every tensor is random: norms and biases as well."""
    generator = torch.Generator().manual_seed(seed)
    name, model_args = NETWORKS[kind]
    model: nn.Module = timm.create_model(name, num_classes=N_CLASSES, **model_args)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            # Weights of norms, variances and layer scales are near one, the rest centred.
            near_one = tensor.ndim == 1 and not key.endswith(("bias", "mean"))
            scale = 1.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.1
            tensor.copy_(near_one + scale * noise)
    return model.eval()


def make_images(kind: str, n: int = N_IMAGES, seed: int = 1) -> NDArray[np.float32]:
    """Unit noise, ``(n, 3, h, w)`` float32."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *input_size(kind)), dtype=np.float32)


@cache
def _traced(kind: str) -> bytes:
    return trace_graph(make_network(kind), input_size(kind)).SerializeToString()


def make_skeleton(kind: str) -> onnx.ModelProto:
    """The skeleton of a kind; a new object each time, traced once."""
    return onnx.load_model_from_string(_traced(kind))


def write_weights(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write ``model.safetensors``, float tensors in this type."""
    folder.mkdir(exist_ok=True)
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


@torch.inference_mode()
def torch_logits(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What torch computes in float32, ``(n, n_classes)``."""
    logits: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
    return logits
