"""PEFT's own GLoRA layer as an independent implementation; A and B share a form, D and E too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glora_deploy.glora.forms import LayerForms
from glora_deploy.glora.layer import layer_shape
from glora_deploy.merge.formula import merge
from layers import make_base, make_input

peft = pytest.importorskip("peft.tuners.glora.layer", reason="an optional package")

ATOL = 1e-5  # float32, sums of 5 products
RANK = 3
FORMS = [
    (ab, c, de)
    for ab in ("lora", "vector", "constant", "none")
    for c in ("lora", "vector", "none")
    for de in ("vector", "constant", "none")
]


def make_peft_layer(base_name: str, ab: str, c: str, de: str) -> Any:
    config = peft.GloraConfig(r=RANK, config_A_B=ab, config_C=c, config_D_E=de, init_weights=False)
    layer = peft.GloraLinear(make_base(base_name), "task", config)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in layer.named_parameters():
        if "base_layer" not in name:
            parameter.data.normal_(generator=generator)
    return layer


def our_supports(layer: Any) -> dict[str, torch.Tensor]:
    """PEFT's tensors under our names and shapes."""
    found = {}
    for support in "ABCDE":
        for name, tensor in getattr(layer, f"glora_{support}")["task"].named_parameters():
            value = tensor.detach()
            if name == "X" and support in "AB" and value.ndim == 1:
                value = value.reshape(1, 1)
            found[support if name == "X" else f"{support}{name.replace('X', '_')}"] = value
    return found


@pytest.mark.parametrize("base_name", ["linear", "linear without bias"])
@pytest.mark.parametrize(("ab", "c", "de"), FORMS)
def test_forward_and_merge_agree_with_peft(base_name: str, ab: str, c: str, de: str) -> None:
    layer = make_peft_layer(base_name, ab, c, de)
    base, supports = layer.get_base_layer(), our_supports(layer)
    w, b = merge(base.weight.detach(), getattr(base, "bias", None), supports)
    x = make_input(base_name)
    torch.testing.assert_close(torch.nn.functional.linear(x, w, b), layer(x), rtol=0, atol=ATOL)
    layer.merge()
    torch.testing.assert_close(w, base.weight.detach(), rtol=0, atol=ATOL)
    if b is not None:
        torch.testing.assert_close(b, base.bias, rtol=0, atol=ATOL)


def test_the_names_and_shapes_are_those_that_a_delta_stores() -> None:
    layer = make_peft_layer("linear", "lora", "vector", "constant")
    paths = LayerForms.parse(f"A=lora:{RANK} B=lora:{RANK} C=vector D=scalar E=scalar")
    shape = layer_shape(layer.get_base_layer())
    assert shape is not None
    found = {name: tuple(tensor.shape) for name, tensor in our_supports(layer).items()}
    assert found == paths.tensor_shapes(shape)
