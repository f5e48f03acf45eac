from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glora_deploy.glora.forms import SUPPORTS, LayerForms, LayerShape
from glora_deploy.glora.support_value import factors_of, value_of
from layers import every_paths
from reference import reference_support

SHAPE = LayerShape(kind="linear", d_out=7, d_in=5, bias=True)
WHOLE = {"A": (7, 5), "B": (7, 5), "C": (5, 1), "D": (7,), "E": (7,)}


def make_tensors(paths: LayerForms) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s) for name, s in paths.tensor_shapes(SHAPE).items()}


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_every_form_has_the_value_that_the_paper_gives_it(make: Any) -> None:
    for paths in every_paths(SHAPE):
        stored = make_tensors(paths)
        tensors = {name: make(tensor) for name, tensor in stored.items()}
        for support in SUPPORTS:
            value = value_of(tensors, support)
            if paths[support].kind == "none":
                assert value is None
                continue
            expected = reference_support(stored, support, WHOLE[support])
            found = np.broadcast_to(np.asarray(value), WHOLE[support])
            np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_factors_multiply_to_the_value() -> None:
    for text in ("A=lora:3", "A=vector", "A=scalar"):
        tensors = make_tensors(LayerForms.parse(text))
        factors = factors_of(tensors, "A")
        assert factors is not None
        down, up = factors
        product = np.broadcast_to(down, (7, 1)) @ np.ones((1, 5)) if up is None else down @ up
        np.testing.assert_array_equal(product, np.broadcast_to(value_of(tensors, "A"), (7, 5)))
        assert factors_of(tensors, "B") is None
