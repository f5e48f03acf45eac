"""What each method computes, as its paper states it, on a vanilla timm ViT through hooks.

Written from the formulas alone, with nothing of the code under test: names of the parts are all
that the two share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Parts = Mapping[str, Tensor]


def add_bitfit(model: nn.Module, parts: Parts, scale: float) -> None:
    for name, change in parts.items():
        module = model.get_submodule(name.removesuffix(".E"))
        module.bias.data += change


def add_lora(model: nn.Module, parts: Parts, scale: float) -> None:
    for name in layers_of(parts, "B_d"):
        down, up = parts[f"{name}.B_d"], parts[f"{name}.B_u"]
        after(model, name, lambda x, y, up=up, down=down: y + x @ up.T @ down.T)


def add_ssf(model: nn.Module, parts: Parts, scale: float) -> None:
    for name in layers_of(parts, "scale"):
        module = model.get_submodule(name)
        shape = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)
        g = parts[f"{name}.scale"].reshape(shape)
        b = parts[f"{name}.shift"].reshape(shape)
        after(model, name, lambda x, y, g=g, b=b: g * y + b)


def add_repadapter(model: nn.Module, parts: Parts, scale: float) -> None:
    for name in layers_of(parts, "w_down"):
        own = [parts[f"{name}.{part}"] for part in ("w_down", "b_down", "w_up", "b_up")]

        def move(x: Tensor, own: list[Tensor] = own) -> Tensor:
            w_down, b_down, w_up, b_up = own
            hidden = x @ w_down.T + b_down
            halves = hidden.chunk(len(w_up), -1)
            raised = torch.cat([h @ w.T for h, w in zip(halves, w_up, strict=True)], -1)
            return x + scale * (raised + b_up)

        before(model, name, move)


def add_fact_tt(model: nn.Module, parts: Parts, scale: float) -> None:
    inner = {name: parts[f"{name}.S"] for name in layers_of(parts, "S")}
    _add_fact(model, parts["U"], parts["V"], inner, scale)


def add_fact_tk(model: nn.Module, parts: Parts, scale: float) -> None:
    inner = {
        name: torch.einsum("abk,kn->nab", parts["core"], parts[f"{name}.P"])
        for name in layers_of(parts, "P")
    }
    _add_fact(model, parts["U"], parts["V"], inner, scale)


def _add_fact(
    model: nn.Module, u: Tensor, v: Tensor, inner: Mapping[str, Tensor], scale: float
) -> None:
    for name, slices in inner.items():
        d_out, d_in = model.get_submodule(name).weight.shape
        changes = [scale * v @ s @ u for s in slices]
        whole = torch.cat(changes, 0 if d_out >= d_in else 1)
        assert whole.shape == (d_out, d_in)
        after(model, name, lambda x, y, whole=whole: y + x @ whole.T)


ORIGINALS: dict[str, Callable[[nn.Module, Parts, float], None]] = {
    "linear": lambda model, parts, scale: None,
    "bitfit": add_bitfit,
    "lora": add_lora,
    "ssf": add_ssf,
    "repadapter": add_repadapter,
    "fact-tt": add_fact_tt,
    "fact-tk": add_fact_tk,
}


def layers_of(parts: Parts, part: str) -> list[str]:
    return [name.removesuffix(f".{part}") for name in parts if name.endswith(f".{part}")]


def after(model: nn.Module, name: str, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(inputs[0], output)

    model.get_submodule(name).register_forward_hook(hook)


def before(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(inputs[0]), *inputs[1:])

    model.get_submodule(name).register_forward_pre_hook(hook)
