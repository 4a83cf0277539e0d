"""Batch normalisation, and its replacements, which keep the names of parameters.

Shapes: B batch, C channels, ... the sides of an image or a volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ea_psmnet.ops.native.batch_norm import batch_norm

_GROUP = 8
"""Channels of a group (Wu and He, "Group Normalization", ECCV 2018, find 8 to 32 equally
good). Groups of one channel would be zero where the feature pyramid pools to a single pixel."""


class _FastBatchNorm(_BatchNorm):
    """Batch normalisation that trains faster where `batch_norm` is compiled."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        learns = self.training and self.affine and self.track_running_stats
        if not learns or self.momentum is None:
            return super().forward(input)
        self._check_input_dim(input)
        self.num_batches_tracked += 1
        statistics = self.running_mean, self.running_var
        return batch_norm(input, self.weight, self.bias, *statistics, self.momentum, self.eps)


class BatchNorm2d(_FastBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`."""


class BatchNorm3d(_FastBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`."""


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """All batch normalisations of a network."""
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def to_group_norm(network: nn.Module) -> None:
    """Normalise over groups of 8 channels of each sample, independently of the batch size."""
    _replace(network, _group_norm)


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Share batch statistics among all processes of the run, on the device that it trains on."""
    if device.type == "cpu":  # torch's own does not support CPUs
        _replace(network, ReducedBatchNorm.like)
    else:
        _replace(network, nn.SyncBatchNorm.convert_sync_batchnorm)


def freeze_statistics(network: nn.Module) -> None:
    """Normalise by the stored statistics; gain and bias still train.

    Call this after every `network.train()`.
    """
    for module in batch_norms(network):
        module.eval()


class ReducedBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes.

    Equal to `nn.BatchNorm2d` and `3d` of the joined batch, gradients included, if the loss is the
    sum of the processes' losses. Without other processes this is plain batch normalisation.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> ReducedBatchNorm:
        """A normalisation that shares the parameters and statistics of another one."""
        made = cls(norm.num_features, norm.eps, norm.momentum).train(norm.training)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of sides."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed):
            return super().forward(input)
        x = input.float()
        sides = [axis for axis in range(x.dim()) if axis != 1]
        mean, variance, count = _joint_moments(x, sides)
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        shape = [1, -1] + [1] * (x.dim() - 2)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        # Centred first, for precision if the mean is much larger than the deviation.
        normalised = (x - mean.view(shape)) * gain.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)


def _joint_moments(x: Tensor, sides: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over all processes, (C,) each, and the number of values in a channel."""
    values = x.new_tensor([x.numel() // x.shape[1]])
    total = _total(torch.cat([x.sum(sides), values]))
    sums, count = total[:-1], total[-1]
    mean = sums / count
    centred = x - mean.view([1, -1] + [1] * (x.dim() - 2))
    return mean, _total(centred.square().sum(sides)) / count, count


def _total(own: Tensor) -> Tensor:
    """The sum over all processes; differentiable."""
    return _Total.apply(own)


class _Total(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _total(gradient)


def _group_norm(norm: _BatchNorm) -> nn.Module:
    channels = norm.num_features
    group = nn.GroupNorm(channels // math.gcd(channels, _GROUP), channels, norm.eps)
    group.weight, group.bias = norm.weight, norm.bias  # gains of attention modules may be zero
    return group


def _replace(network: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, replacement(child))
