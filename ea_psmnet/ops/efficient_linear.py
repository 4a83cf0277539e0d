"""The passes of the efficient-attention block without a softmax, chunk by chunk.

That block is linear in its input but for one sum over positions, the moments, which makes of it one
matrix and one constant.

Shapes: B batch, C channels, n positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ea_psmnet.ops.precision import widen
from ea_psmnet.ops.streaming import chunks

__all__ = ["collapsed_backward", "moments", "moments_backward"]


def moments(x: Tensor, *, mean: bool) -> Tensor:
    """Sum or mean over positions of the outer product of (x, 1) with itself.

    Returns:
        (B, C + 1, C + 1), in float32 at least, for x (B, C, n).
    """
    batch, channels, positions = x.shape
    sums = widen(x.new_zeros(batch, channels + 1, channels + 1))
    for chunk in chunks(x, 2 * channels):
        part = widen(x[:, :, chunk])
        sums[:, :-1, :-1].baddbmm_(part, part.transpose(1, 2))
        sums[:, :-1, -1] += part.sum(dim=2)
    sums[:, -1, :-1] = sums[:, :-1, -1]
    sums[:, -1, -1] = positions
    return sums / positions if mean else sums


def moments_backward(x: Tensor, grad: Tensor, grad_x: Tensor, *, mean: bool) -> None:
    """Backward of `moments`: adds to grad_x (B, C, n) for a gradient (B, C + 1, C + 1)."""
    symmetric = (grad + grad.mT) / (x.shape[2] if mean else 1)
    for chunk in chunks(x, 2 * x.shape[1]):
        grad_x[:, :, chunk] += torch.baddbmm(
            symmetric[:, :-1, -1:], symmetric[:, :-1, :-1], widen(x[:, :, chunk])
        )


def collapsed_backward(x: Tensor, grad: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of x + matrix x + constant, its sums in the matrix's type.

    Returns:
        Gradients of x (B, C, n), of the matrix (B, C, C) and of the constant (B, C, 1).
    """
    grad_x, grad_matrix = torch.empty_like(x), torch.zeros_like(matrix)
    grad_constant = torch.zeros_like(matrix[:, :, :1])
    for chunk in chunks(x, 2 * x.shape[1]):
        part = widen(grad[:, :, chunk])
        grad_matrix.baddbmm_(part, widen(x[:, :, chunk]).mT)
        grad_constant += part.sum(dim=2, keepdim=True)
        grad_x[:, :, chunk] = torch.baddbmm(part, matrix.mT, part)
    return grad_x, grad_matrix, grad_constant
