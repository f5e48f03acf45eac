"""What is written: a folder that transformers loads alone, with an ONNX graph of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from glora_deploy.errors import ExportError
from glora_deploy.export.onnx_model.trace import trace_inputs
from glora_deploy.export.onnx_model.write import write_onnx
from glora_deploy.store.mapped_safetensors import read_layout

from .network import PREFIX, quiet
from .train_glora import Trained

WEIGHTS = "model.safetensors"


def write_delta(trained: Trained, path: Path) -> None:
    """Write the supports and the classifier, with the subnet as metadata, as safetensors.

    The tensors are named and shaped as in a store's ``adapter.safetensors``.
    """
    named: dict[str, Tensor] = {
        **trained.adapted.supports(trained.subnet),
        **trained.adapted.head(),
    }
    subnet = {name.removeprefix(PREFIX): str(forms) for name, forms in trained.subnet.items()}
    save_file(
        {name.removeprefix(PREFIX): tensor.contiguous() for name, tensor in named.items()},
        path,
        metadata={"subnet": json.dumps(subnet)},
    )


def write_merged(
    trained: Trained, tokenizer: transformers.PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write the merged network, its tokenizer and its ONNX graph.

    Raises:
        ExportError: If a tensor is not one of the vanilla architecture's, or the network cannot be
            traced.
    """
    vanilla = trained.network.vanilla
    with quiet():
        vanilla.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    require_vanilla(folder)
    n_max = vanilla.config.max_position_embeddings
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=n_max)
    example = torch.ones(2, min(8, n_max), dtype=torch.int64)
    skeleton = trace_inputs(
        vanilla,
        {"input_ids": example, "attention_mask": example.clone()},
        ({0: batch, 1: tokens}, {0: batch, 1: tokens}),
    )
    labels = list((vanilla.config.id2label or {}).values())
    write_onnx(folder, skeleton, {"labels": json.dumps(labels), "precision": "fp32"})


def require_vanilla(folder: Path) -> None:
    """Compare the weights on disk with what transformers makes of config.json alone.

    Raises:
        ExportError: If a name or a shape differs; names some.
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        fresh = transformers.AutoModelForSequenceClassification.from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}
    found = {name: tuple(place.shape) for name, place in read_layout(folder / WEIGHTS).items()}
    if odd := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ExportError(
            f"{folder / WEIGHTS}: must have the tensors of {type(fresh).__name__}, differs in "
            f"{len(odd)}: {', '.join(odd[:3])}"
        )
