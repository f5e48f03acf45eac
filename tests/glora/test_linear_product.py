"""The product without a dense gradient, against autograd through the dense weight."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora_deploy.glora import linear_product as module
from glora_deploy.glora.layer import GloraLayer
from glora_deploy.glora.linear_product import Factors, linear_product
from glora_deploy.training.config import TrainConfig
from glora_deploy.training.methods import METHODS
from glora_deploy.training.supernet import build_supernet
from stored_tasks import make_backbone

D_OUT, D_IN, RANK = 7, 5, 2
FORMS = ("none", "scalar", "vector", "lora")
CASES = [*itertools.product(FORMS, FORMS, (True, False))]


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def factors(form: str, seed: int) -> Factors | None:
    match form:
        case "scalar":
            return draw(1, 1, seed=seed).requires_grad_(), None
        case "vector":
            return draw(D_OUT, 1, seed=seed).requires_grad_(), None
        case "lora":
            down, up = draw(D_OUT, RANK, seed=seed), draw(RANK, D_IN, seed=seed + 1)
            return down.requires_grad_(), up.requires_grad_()
    return None


def value(given: Factors | None) -> Tensor | float:
    if given is None:
        return 0.0
    down, up = given
    return down if up is None else down @ up


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = draw(*y.shape, seed=99)
    return list(torch.autograd.grad((y * weights).sum(), leaves))


@pytest.mark.parametrize(("a_form", "b_form", "has_bias"), CASES)
@pytest.mark.parametrize("shape", [(6, D_IN), (2, 3, D_IN)])
def test_answers_and_gradients_are_those_of_the_dense_weight(
    a_form: str, b_form: str, has_bias: bool, shape: tuple[int, ...]
) -> None:
    x, w0 = draw(*shape, seed=0).requires_grad_(), draw(D_OUT, D_IN, seed=1)
    bias = draw(D_OUT, seed=2).requires_grad_() if has_bias else None
    a, b = factors(a_form, 10), factors(b_form, 20)
    leaves = [x, *([bias] if bias is not None else [])]
    leaves += [each for given in (a, b) if given for each in given if each is not None]
    found = linear_product(x, w0, bias, a, b)
    expected = F.linear(x, w0 + w0 * value(a) + value(b), bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["scalar", "vector"])
def test_a_factor_of_zero_is_not_divided_by(form: str) -> None:
    x, w0 = draw(6, D_IN, seed=0), draw(D_OUT, D_IN, seed=1)
    down = torch.full((1, 1) if form == "scalar" else (D_OUT, 1), -1.0, dtype=torch.float64)
    down.requires_grad_()
    (found,) = gradients(linear_product(x, w0, None, (down, None), None), [down])
    (expected,) = gradients(F.linear(x, w0 + w0 * down), [down])
    torch.testing.assert_close(found, expected)
    assert found.any()


def test_no_gradient_is_computed_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w0 = draw(6, D_IN, seed=0), draw(D_OUT, D_IN, seed=1)
    calls = []
    original = module._effective
    monkeypatch.setattr(module, "_effective", lambda *args: calls.append(1) or original(*args))
    b = factors("lora", 20)
    y = linear_product(x, w0, None, None, b)
    assert b is not None
    torch.autograd.grad(y.sum(), [b[0]])
    assert len(calls) == 1  # the input needed none, so the weight was not formed again


def test_the_dense_weight_is_not_kept() -> None:
    x, w0 = draw(6, D_IN, seed=0).requires_grad_(), draw(D_OUT, D_IN, seed=1)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in (w0.data_ptr(), x.data_ptr()):
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_product(x, w0, None, factors("lora", 10), factors("lora", 20))
    assert (D_OUT, D_IN) not in kept


class _Odd(nn.Linear):
    """A subclass whose forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = GloraLayer(_Odd(D_IN, D_OUT), (2,), generator)
    x = torch.randn(3, D_IN, generator=generator)
    torch.testing.assert_close(layer(x), layer.base(x))


@pytest.mark.parametrize("seed", range(6))
def test_a_supernets_gradients_are_those_of_its_dense_weights(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.preset("short", drop_path=0.0)
    supernet = build_supernet(
        make_backbone(), 5, config, METHODS["glora"], seed=0, device=torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in supernet.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    supernet.model.train()
    space = supernet.space
    supernet.take(space.largest() if seed == 0 else space.draw(random.Random(seed)))
    x = torch.randn(4, 3, 32, 32, generator=generator)

    def gradients_of(dtype: torch.dtype) -> Tensor:
        supernet.model.to(dtype).zero_grad(set_to_none=True)
        F.cross_entropy(supernet.model(x.to(dtype)), torch.arange(4)).backward()
        taken = supernet.trainable().values()
        return torch.cat([v.grad.double().flatten() for v in taken if v.grad is not None])

    found, exact = gradients_of(torch.float32), gradients_of(torch.float64)

    monkeypatch.setattr(GloraLayer, "forward", GloraLayer.dense_forward)
    # Before the network was float64 it was float32, so both have the same weights.
    expected = gradients_of(torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-8, atol=1e-10)
    rounding = (gradients_of(torch.float32) - expected).norm()
    assert (found - expected).norm() < 3 * rounding
