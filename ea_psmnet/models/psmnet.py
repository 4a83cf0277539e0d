"""PSMNet (Chang and Chen, "Pyramid Stereo Matching Network", CVPR 2018), with optional attention.

Shapes: B batch, H and W of the images, D the maximum disparity.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from ea_psmnet.models.aggregation import BasicAggregation, HourglassAggregation
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.features import FeatureNetwork
from ea_psmnet.models.layers import initialise
from ea_psmnet.models.normalisation import to_group_norm
from ea_psmnet.ops.factored_volume import PairVolume
from ea_psmnet.ops.soft_argmin import soft_argmin

__all__ = ["SIZE_MULTIPLE", "PSMNet", "build_model"]

SIZE_MULTIPLE = 16
"""Image sides must be multiples of this: two halvings of the features, two of the volume."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class HeadOptions(TypedDict):
    """How scores become disparities: keyword arguments of `soft_argmin`."""

    align_corners: bool
    reach: int


class PSMNet(nn.Module):
    """Disparity of the left image of a rectified pair.

    Both images pass the feature network as one batch, so in training its batch normalisation sees
    left and right together (the published code normalises them apart); in evaluation nothing
    differs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        self.config = config
        self.returns_scores = False
        aggregation = (
            HourglassAggregation if config.aggregation == "hourglass" else BasicAggregation
        )
        self.features = FeatureNetwork(config)
        self.aggregation = aggregation(config)
        if config.normalisation == "group":
            to_group_norm(self)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def checkpointing(self) -> bool:
        """Whether training keeps few activations of the volume and computes the others again."""
        return self.aggregation.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.aggregation.checkpointing = value

    @property
    def head_options(self) -> HeadOptions:
        """Of `soft_argmin`."""
        reach = 0 if self.training else self.config.peak_reach
        return {"align_corners": self.config.align_corners, "reach": reach}

    def forward(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """Predict disparity.

        Args:
            left: (B, 3, H, W) RGB from 0 to 1, sides multiples of 16.
            right: the same of the right image.

        Returns:
            Disparities (B, H, W) in pixels, the best last: one per classifier in training, only
            the last in evaluation. In training with `returns_scores`, the scores behind them,
            (B, D / 4, H / 4, W / 4) each, follow in the same order.

        Raises:
            ValueError: the images differ in shape, or a side is no multiple of 16.
        """
        check_images(left, right)
        images = (torch.cat([left, right]) - self.mean) / self.std
        left_features, right_features = self.features(images).chunk(2)
        volume = PairVolume(left_features, right_features, self.config.max_disparity // 4)
        scores = self.aggregation(volume)
        if not self.training:
            scores = scores[-1:]
        size = (self.config.max_disparity, left.shape[-2], left.shape[-1])
        disparities = [soft_argmin(score, size, **self.head_options) for score in scores]
        return disparities + scores if self.training and self.returns_scores else disparities


def check_images(left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape or left.dim() != 4 or left.shape[1] != 3:
        raise ValueError(
            "expected two (B, 3, H, W) images of one shape, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    height, width = left.shape[-2:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        short = [-height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE]
        raise ValueError(
            f"image sides must be multiples of {SIZE_MULTIPLE}, got {height} x {width}: "
            f"pad by {short[0]} rows and {short[1]} columns, or use StereoMatcher, which does"
        )


def build_model(config: PSMNetConfig | str) -> PSMNet:
    """A freshly initialised network, from a configuration or a preset's name.

    Raises:
        ValueError: an unknown preset or an impossible configuration.
    """
    model = PSMNet(preset(config) if isinstance(config, str) else config)
    initialise(model)
    return model
