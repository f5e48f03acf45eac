"""One frozen layer with all its supports: what a supernet is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .forms import SUPPORTS, Form, LayerForms, LayerShape, Support
from .linear_product import linear_product
from .support_value import factors_of, value_of

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def layer_shape(module: nn.Module) -> LayerShape | None:
    """The shape supports must fit on this module, or None if it cannot carry any.

    Linear layers, convolutions (any stride, padding, dilation, groups) and per-channel affines
    (LayerNorm, GroupNorm, RMSNorm, BatchNorm) can, and so can timm's subclasses of them.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    bias = getattr(module, "bias", None) is not None
    d_out = weight.shape[0]
    if isinstance(module, nn.Linear):
        return LayerShape(kind="linear", d_out=d_out, d_in=weight.shape[1], bias=bias)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return LayerShape(kind="conv", d_out=d_out, d_in=weight[0].numel(), bias=bias)
    if isinstance(module, _NORMS) and weight.ndim == 1:
        return LayerShape(kind="affine", d_out=d_out, d_in=1, bias=bias)
    return None


class GloraLayer(nn.Module):
    """A frozen layer whose weight and bias are those of the active paths.

    Weight entanglement (arXiv:2306.07967, section 3.1): one ``A_d (d_out, R)``, ``A_u (R, d_in)``
    serves every choice of A. lora of rank r is the leading r columns and rows, vector is column 0,
    scalar is ``[0, 0]``; likewise B, and C with ``C_d (d_in, R)``, ``C_u (R, 1)``. D and E are
    ``(d_out,)``, their scalar entry 0. The ``_d`` factors, D and E start at zero and the ``_u``
    factors Xavier-uniform, so every path starts as an exact no-op.

    The base module runs with the effective weight in place of its own, so any subclass with any
    forward works, and ``weight`` and ``bias`` answer with the effective ones for the attention
    blocks that read them directly.

    Args:
        base: The vanilla layer; frozen here, otherwise untouched.
        ranks: Ranks of the lora paths; the largest is R. Affine layers ignore them.
        generator: Draws the ``_u`` factors.
        scales: By support, a factor on its vector and scalar paths while training; folded into
            the values that ``supports`` returns. 1 by default, as in the paper.
    """

    def __init__(
        self,
        base: nn.Module,
        ranks: Sequence[int],
        generator: torch.Generator,
        scales: Mapping[Support, float] | None = None,
    ) -> None:
        super().__init__()
        shape = layer_shape(base)
        if shape is None:
            raise ValueError(f"{type(base).__name__} cannot carry supports")
        self.base = base.requires_grad_(False)
        self.shape = shape
        self.scales = dict.fromkeys(SUPPORTS, 1.0) | dict(scales or {})
        self.paths = LayerForms()
        weight = cast(Tensor, base.weight)
        rank = 1 if shape.kind == "affine" else max(ranks)
        for support in SUPPORTS:
            options = shape.choices(support, [rank])
            if len(options) == 1:
                continue
            for name, size in self._stored(support, rank).items():
                tensor = torch.zeros(size)
                if name.endswith("_u"):
                    bound = (6 / (size[0] + size[1])) ** 0.5  # Xavier, as the authors start them
                    tensor.uniform_(-bound, bound, generator=generator)
                tensor = tensor.to(weight.device, weight.dtype)
                self.register_parameter(name, nn.Parameter(tensor))

    def _stored(self, support: Support, rank: int) -> dict[str, tuple[int, ...]]:
        """Every option of a support is a slice of these tensors."""
        if support in "DE":
            return {support: (self.shape.d_out,)}
        if self.shape.kind == "affine":
            return {f"{support}_d": (self.shape.d_out, 1)}
        return self.shape.tensor_shapes(support, Form("lora", rank))

    def _values(self, support: Support, path: Form) -> dict[str, Tensor]:
        """The tensors of one support on a path, named and shaped as a delta stores them."""
        if path.kind == "none":
            return {}
        if path.kind == "lora":
            down, up = getattr(self, f"{support}_d"), getattr(self, f"{support}_u")
            return {f"{support}_d": down[:, : path.rank], f"{support}_u": up[: path.rank]}
        stored = getattr(self, support if support in "DE" else f"{support}_d")
        value = stored[..., :1] if support not in "DE" else stored
        if path.kind == "scalar":
            value = value[:1]
        scale = self.scales[support]
        return {support: value if scale == 1.0 else value * scale}

    def _active(self, support: Support) -> Tensor | None:
        return value_of(self._values(support, self.paths[support]), support)

    @property
    def weight(self) -> Tensor:
        """The effective weight of the active paths, shaped as the base's."""
        frozen = cast(Tensor, self.base.weight)
        a, b = self._active("A"), self._active("B")
        w0 = frozen.reshape(self.shape.d_out, -1)
        w = w0 if a is None else torch.addcmul(w0, w0, a)
        if b is not None:
            w = w + b
        return w.reshape(frozen.shape)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias of the active paths ``(d_out,)``, or None on a layer without one."""
        if not self.shape.bias:
            return None
        b0 = cast(Tensor, self.base.bias)
        c, d, e = self._active("C"), self._active("D"), self._active("E")
        b = b0 if d is None else torch.addcmul(b0, b0, d)
        if e is not None:
            b = b + e
        if c is not None:
            frozen = cast(Tensor, self.base.weight)
            b = b + (frozen.reshape(self.shape.d_out, -1) @ c).squeeze(1)
        return b

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the base module's own forward gives with the effective weight and bias."""
        if type(self.base).forward is nn.Linear.forward and torch.is_grad_enabled():
            a, b = (factors_of(self._values(s, self.paths[s]), s) for s in ("A", "B"))
            return linear_product(x, cast(Tensor, self.base.weight), self.bias, a, b)
        return self.dense_forward(x, *args, **kwargs)

    def dense_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The same, with the effective weight ``(d_out, ...)`` as a tensor of autograd's graph."""
        effective = {"weight": self.weight}
        if (bias := self.bias) is not None:
            effective["bias"] = bias
        return cast(Tensor, functional_call(self.base, effective, (x, *args), kwargs))

    def supports(self, paths: LayerForms) -> dict[str, Tensor]:
        """The tensors of these paths as a delta stores them, detached; scales folded in.

        Raises:
            ValueError: If a path is not possible on this layer.
        """
        shapes = paths.tensor_shapes(self.shape)
        found = {
            name: tensor.detach()
            for support, path in paths.items()
            for name, tensor in self._values(support, path).items()
        }
        for name, tensor in found.items():
            if tuple(tensor.shape) != shapes[name]:
                got = tuple(tensor.shape)
                raise ValueError(f"{name} must have shape {shapes[name]}, got {got} here")
        return found

    def extra_repr(self) -> str:
        """The active paths."""
        return str(self.paths)
