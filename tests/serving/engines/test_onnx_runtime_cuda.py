"""ONNX Runtime on a GPU: inputs bound there, the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from glora_deploy.serving.engines.network import Buffer
from glora_deploy.serving.engines.onnx_runtime import OnnxNetwork
from glora_deploy.store.mapped_safetensors import map_tensors
from onnx_networks import make_images, make_network, make_skeleton, torch_logits, write_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="needs onnxruntime-gpu and a CUDA device",
    ),
]

NAME = "blocks.0.attn.qkv.weight"
HEAD = ("head.weight", "head.bias")


def test_it_answers_on_a_gpu_with_the_weights_it_is_fed(tmp_path: Path) -> None:
    frozen, task = make_network("vit", seed=0), make_network("vit", seed=0)
    task.state_dict()[NAME].mul_(1.5)
    weights = write_weights(frozen, tmp_path)
    network = OnnxNetwork(
        make_skeleton("vit"),
        weights,
        map_tensors(weights),
        adapted=[NAME],
        head=HEAD,
        device="cuda",
    )
    views = network.layout.views(Buffer(network.layout.size_bytes))
    views[NAME][...] = task.state_dict()[NAME].numpy().T
    state = task.state_dict()
    bound = network.bind(views, {name: state[name].numpy() for name in HEAD})
    assert network.fix(views, {}) is None
    images = make_images("vit")
    for _ in range(2):
        found = network.run(bound, images)
        np.testing.assert_allclose(found, torch_logits(task, images), atol=1e-4)
