"""The product of a linear layer with supports, without the gradient of its dense weight.

Autograd would keep the effective weight ``(d_out, d_in)`` of every layer and compute its gradient,
a product as large as the layer's own, to take from it what a few vectors and thin factors need. But
of all forms only a lora A, which multiplies each entry of the frozen weight by a number of its own,
depends on that gradient. With g the gradient of the output and x the input, both ``(n, .)``::

    B lora      dB_d = g.T @ (x @ B_u.T)      dB_u = (g @ B_d).T @ x
    B vector    dB   = g.T @ x.sum(1)         a scalar is the sum of it
    A vector    dA   = sum over n of g * (x @ w0.T), row by row

The last product is what the layer has put out, but for B and the bias, and divided by ``1 + A``; so
it is taken from the output. The effective weight itself is cheap to form beside the product, and is
formed again in the backward pass rather than kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NEAR_ZERO = 1e-3
"""A factor ``1 + A`` below this is not divided by."""

Factors = tuple[Tensor, Tensor | None]
"""Of A or B, as ``support_value.factors_of`` gives them."""


def linear_product(
    x: Tensor, w0: Tensor, bias: Tensor | None, a: Factors | None, b: Factors | None
) -> Tensor:
    """``x @ (w0 + w0 * A + B).T + bias``, differentiable in all but w0.

    Args:
        x: ``(..., d_in)``.
        w0: Frozen ``(d_out, d_in)``.
        bias: Effective ``(d_out,)``.
        a: Factors of A.
        b: Factors of B.
    """
    a_d, a_u = a or (None, None)
    b_d, b_u = b or (None, None)
    product: Tensor = _Product.apply(x, w0, bias, a_d, a_u, b_d, b_u)
    return product


def _effective(
    w0: Tensor, a_d: Tensor | None, a_u: Tensor | None, b_d: Tensor | None, b_u: Tensor | None
) -> Tensor:
    w = w0
    if a_d is not None:
        w = torch.addcmul(w0, w0, a_d if a_u is None else a_d @ a_u)
    if b_d is not None:
        w = w + b_d if b_u is None else torch.addmm(w, b_d, b_u)
    return w


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w0: Tensor, bias: Tensor | None, *factors: Any) -> Tensor:
        a_d, a_u, b_d, b_u = factors
        y = F.linear(x, _effective(w0, a_d, a_u, b_d, b_u), bias)
        scaled = a_d is not None and a_u is None
        ctx.save_for_backward(x, w0, bias, a_d, a_u, b_d, b_u, y if scaled else None)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, w0, bias, a_d, a_u, b_d, b_u, y = ctx.saved_tensors
        g = gradients[0].reshape(-1, len(w0))
        flat = x.reshape(-1, w0.shape[1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g @ _effective(w0, a_d, a_u, b_d, b_u)).reshape(x.shape)
        db = None if bias is None else g.sum(0)
        if a_u is not None:
            return (dx, None, db, *_through_dense(flat, g, w0, a_d, a_u, b_d, b_u))
        db_d = db_u = da_d = None
        whole_b = None
        if b_d is not None:
            whole_b, db_u = _of_b(flat, g, b_d, b_u)
            db_d = whole_b if b_u is not None else _shaped(whole_b, b_d)
        if a_d is not None:
            of_rows = _of_rows(flat, g, w0, y.reshape(g.shape), bias, db, a_d, b_d, whole_b)
            da_d = _shaped(of_rows, a_d)
        return dx, None, db, da_d, None, db_d, db_u


def _of_b(x: Tensor, g: Tensor, b_d: Tensor, b_u: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of the factors of B; of a vector or scalar that of the vector, ``(d_out, 1)``."""
    if b_u is None:
        return g.T @ x.sum(1, keepdim=True), None
    return g.T @ (x @ b_u.T), (g @ b_d).T @ x


def _of_rows(
    x: Tensor,
    g: Tensor,
    w0: Tensor,
    y: Tensor,
    bias: Tensor | None,
    db: Tensor | None,
    a_d: Tensor,
    b_d: Tensor | None,
    whole_b: Tensor | None,
) -> Tensor:
    """The gradient of A as a vector, ``(d_out, 1)``, out of the output."""
    factor = 1 + a_d
    if bool((factor.abs() < NEAR_ZERO).any()):
        return ((g.T @ x) * w0).sum(1, keepdim=True)
    found = (g * y).sum(0)
    if bias is not None and db is not None:
        found = found - bias * db
    if b_d is not None and whole_b is not None:
        found = found - (whole_b * b_d).sum(1)
    return found[:, None] / factor


def _through_dense(
    x: Tensor,
    g: Tensor,
    w0: Tensor,
    a_d: Tensor,
    a_u: Tensor,
    b_d: Tensor | None,
    b_u: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of all factors where A is lora, from that of the dense weight."""
    dense = g.T @ x
    db_d = db_u = None
    if b_d is not None:
        if b_u is None:
            db_d = _shaped(dense.sum(1, keepdim=True), b_d)
        else:
            db_d, db_u = dense @ b_u.T, b_d.T @ dense
    dense.mul_(w0)
    return dense @ a_u.T, a_d.T @ dense, db_d, db_u


def _shaped(of_rows: Tensor, like: Tensor) -> Tensor:
    """Of a vector as it is, of a scalar the sum."""
    return of_rows if like.shape == of_rows.shape else of_rows.sum().reshape(like.shape)
