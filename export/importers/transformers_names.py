"""Where the layers of a transformers ViT, DeiT or DINOv2 lie in timm's network of the same kind."""

from __future__ import annotations

import re

from .assemble import Place

_QKV = ("attn.qkv", 3)
_GATED = ("mlp.fc1", 2)
# Layer within a block, then (timm's layer, shares it is made of) and which share it is. The first
# spelling of each pair is that of transformers 4, the second of transformers 5.
_WITHIN = {
    "attention.attention.query": (*_QKV, 0),
    "attention.q_proj": (*_QKV, 0),
    "attention.attention.key": (*_QKV, 1),
    "attention.k_proj": (*_QKV, 1),
    "attention.attention.value": (*_QKV, 2),
    "attention.v_proj": (*_QKV, 2),
    "attention.output.dense": ("attn.proj", 1, 0),
    "attention.o_proj": ("attn.proj", 1, 0),
    "intermediate.dense": ("mlp.fc1", 1, 0),
    "mlp.fc1": ("mlp.fc1", 1, 0),
    "output.dense": ("mlp.fc2", 1, 0),
    "mlp.fc2": ("mlp.fc2", 1, 0),
    "mlp.weights_in": ("mlp.fc1", 1, 0),
    "mlp.gate_proj": (*_GATED, 0),
    "mlp.up_proj": (*_GATED, 1),
    "mlp.weights_out": ("mlp.fc2", 1, 0),
    "mlp.down_proj": ("mlp.fc2", 1, 0),
    "layernorm_before": ("norm1", 1, 0),
    "norm1": ("norm1", 1, 0),
    "layernorm_after": ("norm2", 1, 0),
    "norm2": ("norm2", 1, 0),
}
_OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
_MODEL = r"(?:(?:vit|deit|dinov2)\.)?"


def timm_place(name: str) -> Place | None:
    """The place of a transformers layer in timm's network; None if it has none.

    ``vit.encoder.layer.3.attention.attention.value`` is the last third of the rows of
    ``blocks.3.attn.qkv``; ``vit.pooler.dense`` is nowhere.
    """
    if found := re.fullmatch(_MODEL + r"(?:encoder\.)?layers?\.([0-9]+)\.(.+)", name):
        if found[2] not in _WITHIN:
            return None
        layer, count, index = _WITHIN[found[2]]
        return Place(f"blocks.{found[1]}.{layer}", index, count)
    name = re.sub(f"^{_MODEL}", "", name)
    return Place(_OUTSIDE[name]) if name in _OUTSIDE else None
