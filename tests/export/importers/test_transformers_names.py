"""Names out of transformers' own networks, of both spellings."""

from __future__ import annotations

import pytest

from glora_deploy.export.importers.assemble import Place
from glora_deploy.export.importers.transformers_names import timm_place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit.layers.3.attention.v_proj", Place("blocks.3.attn.qkv", 2, 3)),
        ("vit.encoder.layer.3.attention.attention.value", Place("blocks.3.attn.qkv", 2, 3)),
        ("encoder.layer.11.attention.attention.query", Place("blocks.11.attn.qkv", 0, 3)),
        ("deit.encoder.layer.0.attention.output.dense", Place("blocks.0.attn.proj")),
        ("deit.encoder.layer.0.output.dense", Place("blocks.0.mlp.fc2")),
        ("dinov2.encoder.layer.1.norm2", Place("blocks.1.norm2")),
        ("dinov2.encoder.layer.1.mlp.up_proj", Place("blocks.1.mlp.fc1", 1, 2)),
        ("dinov2.encoder.layer.1.mlp.weights_in", Place("blocks.1.mlp.fc1")),
        ("dinov2.layernorm", Place("norm")),
        ("vit.embeddings.patch_embeddings.projection", Place("patch_embed.proj")),
        ("classifier", Place("head")),
        ("vit.pooler.dense", None),
        ("dinov2.encoder.layer.1.layer_scale1", None),
        ("bert.encoder.layer.0.attention.self.query", None),
        ("blocks.0.attn.qkv", None),
    ],
)
def test_a_layer_is_where_timm_keeps_it(name: str, place: Place | None) -> None:
    assert timm_place(name) == place
