"""A trained network's weights for one with more channels, which starts as the same function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet

__all__ = ["widen"]

_SPREAD = 0.5
"""How far the shares of a channel's copies vary, as a standard deviation around their mean of 1."""


def widen(config: PSMNetConfig, state: dict[str, Tensor], network: PSMNet) -> dict[str, Tensor]:
    """Repeat the channels of a narrow network until they fill a wide one (Net2WiderNet: Chen et
    al., "Net2Net", ICLR 2016, equation 1).

    Channel c becomes channels k c to k c + k - 1, and whatever reads them weights its k inputs so
    that they add up to what it read before: disparities stay the same but for rounding. The shares
    are drawn at random, without which the copies would stay copies in training, too. Softmax over
    the keys and queries of efficient attention keeps its result under repetition; other mechanisms
    do not.

    Args:
        config: of the narrow network.
        state: its state.
        network: the wide one, of k times that width; its shapes are taken.

    Returns:
        A state for `network`: a tensor for each in `state`.

    Raises:
        ValueError: k is not whole, or repetition would change what the network computes.
    """
    width = network.config.width
    if width % config.width:
        raise ValueError(f"width {config.width} grows to its whole multiples, not to {width}")
    if config.normalisation != "batch":
        raise ValueError("groups of channels do not grow: only batch normalisation does")
    if config.attention != "none" and not _survives_repetition(config):
        raise ValueError(
            f"attention '{config.attention}' changes when its channels are repeated: only "
            "efficient attention with softmax grows"
        )
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    inputs = {f"{name}.weight": _input_dimension(m) for name, m in network.named_modules()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: _repeat(tensor, shapes.get(name, tensor.shape), inputs.get(name), generator)
        for name, tensor in state.items()
    }


def _survives_repetition(config: PSMNetConfig) -> bool:
    normalisation = config.attention_options.get("normalisation", "softmax")
    return config.attention == "efficient" and normalisation == "softmax"


def _input_dimension(module: nn.Module) -> int | None:
    """Of a convolution's weights, the one over its inputs."""
    if not isinstance(module, _ConvNd):
        return None
    return 0 if isinstance(module, _ConvTransposeNd) else 1


def _repeat(
    tensor: Tensor, shape: torch.Size, inputs: int | None, generator: torch.Generator
) -> Tensor:
    """Repeat a tensor's values along each dimension that has grown."""
    for dimension, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        copies = new // old
        if copies > 1:
            tensor = tensor.repeat_interleave(copies, dimension)
            if dimension == inputs:
                tensor = tensor * _shares(tensor, dimension, copies, generator)
    return tensor


def _shares(tensor: Tensor, dimension: int, copies: int, generator: torch.Generator) -> Tensor:
    """Random factors of which each run of `copies` along `dimension` adds up to 1."""
    noise = torch.randn(tensor.shape, generator=generator).unflatten(dimension, (-1, copies))
    noise -= noise.mean(dimension + 1, keepdim=True)
    return ((1 + _SPREAD * noise) / copies).flatten(dimension, dimension + 1)
