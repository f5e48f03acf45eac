"""Whole networks merged by the plain formula, to compare those with that are merged otherwise."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glora_deploy.glora.layer import layer_shape
from glora_deploy.merge.formula import merge, split_by_layer


def float64_merge(model: nn.Module, supports: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a vanilla network in float64, each of its layers merged with its supports."""
    merged = copy.deepcopy(model).double()
    layers = [name for name, module in model.named_modules() if layer_shape(module) is not None]
    for layer, tensors in split_by_layer(supports, layers).items():
        frozen, target = model.get_submodule(layer), merged.get_submodule(layer)
        w, b = merge(frozen.weight, getattr(frozen, "bias", None), tensors, torch.float64)
        target.weight.data.copy_(w)
        if b is not None:
            target.bias.data.copy_(b)
    return merged
