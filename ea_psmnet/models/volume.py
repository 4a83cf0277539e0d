"""Cost volumes: how features of the two images are compared.

Shapes: B batch, C feature channels, G groups, K disparity levels, h and w of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.layers import conv2d_bn
from ea_psmnet.ops.cost_volume import (
    PairVolume,
    concat_volume_reference,
    concat_volume_stacked,
    group_correlation,
    group_correlation_reference,
)
from ea_psmnet.tables import build_choice, check_counts

Parts = tuple[Tensor | PairVolume, ...]
"""A volume as parts that are concatenated along its channels."""


class CostVolume(nn.Module):
    """Compares the left image's features with the right image's at every disparity level."""

    plain: bool = False
    """Whether to compute as the published code does, which takes more time and memory."""
    parts: tuple[int, ...]
    """Channels of each part."""

    @property
    def stored_channels(self) -> int:
        """Channels of the parts that are stored as tensors in inference."""
        return sum(self.parts)

    def forward(self, left: Tensor, right: Tensor, levels: int) -> Parts:
        """Features to the parts of the volume, (B, channels, K, h, w) each.

        Args:
            left: (B, C, h, w) of the left image.
            right: (B, C, h, w) of the right image.
            levels: K, in feature pixels.
        """
        raise NotImplementedError

    def _concatenation(self, left: Tensor, right: Tensor, levels: int) -> Tensor | PairVolume:
        if torch.compiler.is_exporting():
            return concat_volume_stacked(left, right, levels)
        if self.plain:
            return concat_volume_reference(left, right, levels)
        return PairVolume(left, right, levels)


class ConcatVolume(CostVolume):
    """Left features beside shifted right features (PSMNet, section 3.3).

    Args:
        channels: C of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = (2 * channels,)

    @property
    def stored_channels(self) -> int:
        """None: the concatenation is convolved by its factors."""
        return 0

    def forward(self, left: Tensor, right: Tensor, levels: int) -> Parts:
        """See `CostVolume.forward`."""
        return (self._concatenation(left, right, levels),)


class GroupwiseVolume(CostVolume):
    """Cosine similarities of groups of channels (Guo et al., CVPR 2019, section 3.2).

    Args:
        channels: C of the features.
        groups: G, a divisor of C.
    """

    def __init__(self, channels: int, *, groups: int = 8) -> None:
        super().__init__()
        check_counts(groups=groups)
        if channels % groups:
            raise ValueError(f"{channels} feature channels do not split into {groups} groups")
        self.parts = (groups,)

    def forward(self, left: Tensor, right: Tensor, levels: int) -> Parts:
        """See `CostVolume.forward`."""
        return (self._correlation(left, right, levels),)

    def _correlation(self, left: Tensor, right: Tensor, levels: int) -> Tensor:
        correlation = group_correlation_reference if self.plain else group_correlation
        dtype = None
        if torch.is_autocast_enabled(left.device.type):
            dtype = torch.get_autocast_dtype(left.device.type)
        return correlation(left, right, levels, self.parts[0], dtype=dtype)


class CombinedVolume(GroupwiseVolume):
    """Group-wise correlations and a narrow concatenation (Guo et al., CVPR 2019, section 3.3).

    Args:
        channels: C of the features.
        groups: G, a divisor of C.
        concatenated: Channels of each image in the concatenation, made by a 1x1 convolution.
    """

    def __init__(self, channels: int, *, groups: int = 8, concatenated: int = 12) -> None:
        super().__init__(channels, groups=groups)
        check_counts(concatenated=concatenated)
        self.parts = (groups, 2 * concatenated)
        self.compress = nn.Sequential(
            *conv2d_bn(channels, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, concatenated, 1, bias=False),
        )

    def forward(self, left: Tensor, right: Tensor, levels: int) -> Parts:
        """See `CostVolume.forward`."""
        concatenation = self._concatenation(self.compress(left), self.compress(right), levels)
        return self._correlation(left, right, levels), concatenation


VOLUMES: dict[str, type[CostVolume]] = {
    "concat": ConcatVolume,
    "groupwise": GroupwiseVolume,
    "combined": CombinedVolume,
}


def build_volume(config: PSMNetConfig, channels: int) -> CostVolume:
    """Build the cost volume that a configuration names, for features of C channels.

    Raises:
        ValueError: Unknown name or option; the message lists the choices.
    """
    return build_choice("volume", VOLUMES, config.volume, config.volume_options, channels)
