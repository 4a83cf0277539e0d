"""Convolutions in faster forms, and volumes convolved a slab of disparities at a time.

Shapes: B batch, C channels, K disparities, H and W of a map, h and w of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import learns_in_float32, needs_gradients
from ea_psmnet.ops.native.score_conv import add_score, is_compiled_for, score_gradients
from ea_psmnet.ops.precision import lean_backward

# Depth-wise ---------------------------------------------------------------------------------------


def depthwise_conv(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """`torch.nn.functional.conv2d` with one kernel a channel, with a backward in float32.

    On CPUs oneDNN's bfloat16 backward of depth-wise convolutions takes four to eight times as long
    as its float32 one (torch 2.15, AVX-512-BF16).

    Args:
        images: (B, C, H, W).
        weight: (C, 1, k, k).
        bias: (C,) or None.
        stride: Along both sides.
        padding: Zeros around the images.

    Returns:
        (B, C, H', W') of the autocast type, otherwise of the images'.
    """
    device = images.device.type
    half = torch.is_autocast_enabled(device)
    if not (half and device == "cpu" and torch.is_grad_enabled() and bias is None):
        return F.conv2d(images, weight, bias, stride, padding, groups=len(weight))
    return _DepthwiseConv.apply(images, weight, stride, padding, torch.get_autocast_dtype(device))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
    ) -> Tensor:
        images = images.to(dtype)
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight.to(dtype), None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, _ = torch.ops.aten.convolution_backward(
            grads[0].float(),
            images.float(),
            weight.float(),
            None,
            (ctx.stride, ctx.stride),
            (ctx.padding, ctx.padding),
            (1, 1),
            False,
            (0, 0),
            len(weight),
            (True, True, False),
        )
        return of_images.to(images.dtype), of_weight.to(weight.dtype), None, None, None


# In oneDNN ----------------------------------------------------------------------------------------


def direct_conv3d(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`torch.nn.functional.conv3d`, in oneDNN on the CPU whatever the size; for inference.

    For single small float32 volumes torch chooses a convolution of its own, which is several times
    slower (docs/speed-notes.md).
    """
    if not _may_choose_its_own(volume):
        return F.conv3d(volume, weight, bias, stride, padding, dilation, groups)
    return torch.ops.aten.mkldnn_convolution(
        volume, weight, bias, padding, stride, dilation, groups
    )


def direct_conv_transpose3d(
    volume: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """`torch.nn.functional.conv_transpose3d`, see `direct_conv3d`."""
    sides = stride, padding, output_padding
    if not _may_choose_its_own(volume):
        return F.conv_transpose3d(volume, weight, bias, *sides, groups, dilation)
    return torch.ops.mkldnn._convolution_transpose_pointwise(
        *(volume, weight, bias, padding, output_padding, stride, dilation, groups),
        *("none", [], ""),  # no activation
    )


def _may_choose_its_own(volume: Tensor) -> bool:
    """Whether torch chooses between oneDNN's convolutions and its own."""
    on_cpu = volume.device.type == "cpu" and volume.dtype == torch.float32
    return on_cpu and has_onednn() and not torch.compiler.is_exporting()


def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN is there and enabled, and computes in this type."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    half = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return half or dtype == torch.float32


# To a single channel ------------------------------------------------------------------------------


def score_conv_reference(volume: Tensor, weight: Tensor) -> Tensor:
    """Convolve a volume to one channel, as the last layer of a classifier does.

    Args:
        volume: (B, C, K, h, w).
        weight: (1, C, 3, 3, 3).

    Returns:
        (B, 1, K, h, w).
    """
    return F.conv3d(volume, weight, padding=1)


def score_conv(volume: Tensor, weight: Tensor) -> Tensor:
    """`score_conv_reference` with a ninth of the work, its last sum in float32 at least.

    Convolutions compute 16 output channels or more at a time, so that one alone wastes most of the
    work. Compiled code for CPUs sums over all taps and channels at once, in training in float32.
    Otherwise the nine taps of kd and ky are nine output channels of a convolution along rows, and
    the score is their shifted sum. Exported graphs have the reference.
    """
    if torch.compiler.is_exporting():
        return score_conv_reference(volume, weight)
    if is_compiled_for(volume, weight) and learns_in_float32(volume, weight):
        return _ScoreConv.apply(volume, weight)
    if needs_gradients(volume, weight):
        return _ShiftedSum.apply(_score_taps(volume, weight)).unsqueeze(1)
    return _scores(volume, weight)


def _scores(volume: Tensor, weight: Tensor) -> Tensor:
    score = _zeros(volume)
    for sample, total in zip(volume.split(1), score.split(1), strict=True):
        _add_score(total, sample, weight, 0)
    return score.unsqueeze(1)


def _zeros(volume: Tensor) -> Tensor:
    """Sums for a score (B, K, h, w) of a volume (B, C, K, h, w), in float32 at least."""
    wide = torch.promote_types(volume.dtype, torch.float32)
    return volume.new_zeros(volume.shape[0], *volume.shape[2:], dtype=wide)


def _add_score(total: Tensor, volume: Tensor, weight: Tensor, start: int) -> None:
    """Add to a score (1, K, h, w) the part of the volume (1, C, k, h, w) from `start` on."""
    if is_compiled_for(volume, weight):
        add_score(total[0], volume[0], weight, start)
    else:
        _add_taps(total, _score_taps(volume, weight), start)


def _score_taps(volume: Tensor, weight: Tensor) -> Tensor:
    """The nine taps (B, 9, k, h, w) of a volume (B, C, k, h, w), by a kernel (1, C, 3, 3, 3)."""
    taps = weight[0].permute(1, 2, 0, 3).flatten(0, 1)  # (9, C, kx)
    return F.conv3d(volume, taps[:, :, None, None], padding=(0, 0, 1))


def _add_taps(total: Tensor, taps: Tensor, start: int) -> None:
    """Add the taps (B, 9, k, h, w), whose first disparity is `start`, to a score (B, K, h, w)."""
    for part, tap in _shifted(total, taps, start):
        part += tap


def _shifted(total: Tensor, taps: Tensor, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the sum (B, K, h, w), each with the part of the taps (B, 9, k, h, w) added there."""
    kept = (slice(1, None), slice(None), slice(None, -1))  # where a tap of -1, 0 or 1 sees the map
    depth, count = total.shape[1], taps.shape[2]
    for tap, (kd, ky) in enumerate(product(range(3), range(3))):
        first = start + 1 - kd
        there = slice(max(first, 0), min(first + count, depth))
        here = slice(there.start - first, there.stop - first)
        yield total[:, there, kept[ky]], taps[:, tap, here, kept[2 - ky]]


class _ScoreConv(torch.autograd.Function):
    """The convolution and its gradients in compiled code."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(volume, weight)
        return _scores(volume, weight).detach()  # a view cannot be changed in place

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        volume, weight = ctx.saved_tensors
        samples = zip(grads[0].squeeze(1), volume, strict=True)
        made = (score_gradients(grad, sample, weight) for grad, sample in samples)
        of_volumes, of_weights = zip(*made, strict=True)
        adjacent = torch.stack([part.movedim(0, -1) for part in of_volumes])
        return adjacent.movedim(-1, 1), torch.stack(of_weights).sum(0)


class _ShiftedSum(torch.autograd.Function):
    """Sum of nine taps, each shifted by its place; the backward shifts the gradient of each."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor) -> Tensor:
        ctx.dtype = taps.dtype
        total = _zeros(taps)
        _add_taps(total, taps, 0)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        taps = grad.new_zeros(*grad.shape, 9, dtype=ctx.dtype).movedim(-1, 1)
        for part, tap in _shifted(grad, taps):
            tap.copy_(part)
        return taps


# A slab of disparities at a time ------------------------------------------------------------------
#
# For inference: the volume between two 3x3x3 convolutions is never stored as a whole, which saves
# its memory, and activations and sums happen while a slab is in the processor's cache. Nothing is
# computed twice.

_SLAB_BYTES = 2**23
"""Size of a slab between two convolutions, which stays in the processor's cache."""

_LEAST = 4
"""Disparities of the smallest slab."""

Convolve = Callable[[Tensor], Tensor]
"""A 3x3x3 convolution (1, C, k + 2, h, w) to (1, O, k, h, w), padded in rows and columns only."""


def convolve_in_place(volume: Tensor, convolve: Convolve) -> Tensor:
    """Overwrite a volume (B, C, K, h, w) by its convolution, which keeps the number of channels."""
    border = _border(volume)
    for sample in volume.split(1):
        before, depth = border, sample.shape[2]
        for start, stop in _slabs(sample):
            behind = [border] if stop == depth else []
            seen = _join([before, sample[:, :, start : stop + 1], *behind])
            before = sample[:, :, stop - 1 : stop].clone()
            sample[:, :, start:stop] = convolve(seen)
    return volume


def residual_in_place(volume: Tensor, first: Convolve, second: Convolve) -> Tensor:
    """Add `second(first(volume))` to a volume (B, C, K, h, w) in place.

    A disparity is overwritten once everything that depends on it has been computed.
    """
    border = _border(volume)
    for sample in volume.split(1):
        window, done = border, 0
        for start, hidden in _hidden_slabs(sample, first):
            behind = [border] if start + hidden.shape[2] == sample.shape[2] else []
            window = _join([window[:, :, -2:], hidden, *behind])
            added = second(window)
            sample[:, :, done : done + added.shape[2]] += added
            done += added.shape[2]
    return volume


def score_in_slabs(volume: Tensor, first: Convolve, weight: Tensor) -> Tensor:
    """Convolve a volume, then convolve the result to a score.

    Args:
        volume: (B, C, K, h, w).
        first: Convolution of C to O channels, followed by its activation.
        weight: (1, O, 3, 3, 3), the weight of the padded convolution to one channel.

    Returns:
        (B, 1, K, h, w) in float32 at least.
    """
    score = _zeros(volume)
    for sample, total in zip(volume.split(1), score.split(1), strict=True):
        for start, hidden in _hidden_slabs(sample, first):
            _add_score(total, hidden, weight, start)
    return score.unsqueeze(1)


def _hidden_slabs(volume: Tensor, convolve: Convolve) -> Iterator[tuple[int, Tensor]]:
    """Yield slabs of a convolved volume (1, C, K, h, w), each with its first disparity."""
    border, depth = _border(volume), volume.shape[2]
    for start, stop in _slabs(volume):
        before, behind = [border] * (start == 0), [border] * (stop == depth)
        inside = volume[:, :, max(start - 1, 0) : stop + 1]
        seen = _join([*before, inside, *behind]) if before or behind else inside
        yield start, convolve(seen)


def _slabs(volume: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the range of disparities of each slab of a volume (1, C, K, h, w)."""
    depth = volume.shape[2]
    bytes_each = volume[:, :, 0].numel() * volume.element_size()
    step = max(_LEAST, _SLAB_BYTES // bytes_each // _LEAST * _LEAST)
    for start in range(0, depth, step):
        yield start, min(start + step, depth)


def _border(volume: Tensor) -> Tensor:
    """The padding beyond a volume's disparities: (1, C, 1, h, w) of zeros."""
    return volume.new_zeros(1, volume.shape[1], 1, *volume.shape[3:])


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate parts of a volume along disparities, channels-last as convolutions need it."""
    return torch.cat([part.movedim(1, -1) for part in parts], dim=1).movedim(-1, 1)
