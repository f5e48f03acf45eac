"""PEFT adapters for tests of their import, and what their import must come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from glora_deploy.backbones.load import Backbone
from glora_deploy.export.importers.assemble import Imported, store_import
from glora_deploy.export.importers.peft import import_peft, read_adapter
from glora_deploy.store.store import ArtifactStore
from stored_tasks import merged_state

PEFT_WARNINGS = [
    # PEFT 0.21 asks transformers 5.23 by a name that is going away.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT 0.21 takes the bias of lora_B for a shard of a matrix.
    pytest.mark.filterwarnings(
        r"ignore:Adapter 'default'. 4 LoRA tensor.s. have invalid shape"
        r".*lora_B.bias:peft.utils.warning.PeftWarning"
    ),
]
"""What every test that runs PEFT lets pass."""

N_CLASSES = 3
RTOL = 1e-6  # float32, of the largest entry: a product, a sum and a few roundings
LINEAR = ["qkv", "attn.proj", "fc1", "fc2"]
HEAD = ["head"]
QKV = "blocks.0.attn.qkv"
FITTING = {f"{QKV}.lora_A.weight": (2, 48), f"{QKV}.lora_B.weight": (144, 2)}


def make_adapter(model: nn.Module, config: Any, *, scale: float = 0.1) -> PeftModel:
    """A PEFT model whose every trainable number is random."""
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def saved(adapted: PeftModel, folder: Path) -> Path:
    adapted.save_pretrained(folder)
    return folder


def imported_from(source: Path | str, backbone: Backbone, **options: Any) -> Imported:
    return import_peft(read_adapter(source, **options), backbone)


def merged_here(folder: Path, backbone: Backbone, root: Path, **options: Any) -> dict[str, Tensor]:
    """Import, store, read back and merge."""
    imported = imported_from(folder, backbone, **options)
    store = ArtifactStore.create(root)
    artifact = store_import(store, backbone, imported, task="pets")
    return {name: tensor.float() for name, tensor in merged_state(store, artifact).items()}


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = (found[name].double() - tensor.double()).abs().max()
        assert worst <= RTOL * tensor.abs().max(), name


def save_head(model: nn.Module, path: Path, prefix: str = "") -> Path:
    """A network's tensors as a file that a classifier can be taken from."""
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, path)
    return path


def require_same_logits(
    found: Mapping[str, Tensor],
    backbone: Backbone,
    merged: nn.Module,
    *,
    n_classes: int = N_CLASSES,
) -> None:
    """The imported network computes what PEFT's merged one does, to rounding."""
    network = backbone.build(n_classes)
    network.load_state_dict(found)
    images = torch.randn(2, *backbone.input_size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = merged(images)
        expected = getattr(expected, "logits", expected)
        assert (network(images) - expected).abs().max() < 1e-4 * expected.std()


def without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def write_adapter(folder: Path, tensors: Mapping[str, tuple[int, ...]], **config: Any) -> Path:
    """An adapter of zeros, with a classifier."""
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["qkv"]}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    head = {"head.weight": (3, 48), "head.bias": (3,)} if "classifier.bias" not in tensors else {}
    shapes = {f"base_model.model.{name}": shape for name, shape in {**head, **tensors}.items()}
    save_file(
        {name: torch.zeros(shape) for name, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    return folder
