"""The concatenation cost volume of PSMNet (Chang and Chen, CVPR 2018, section 3.3).

Shapes: B batch, C channels, K disparities at feature resolution, H and W of the features.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["concat_volume_reference"]


def concat_volume_reference(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Left features beside the right features shifted by each disparity; zero where x < d.

    Filled by a loop, as published; the network convolves it by its factors (`factored_volume`).

    Args:
        left: (B, C, H, W) features of the left image.
        right: (B, C, H, W) features of the right image.
        disparities: K, in feature pixels.

    Returns:
        (B, 2C, K, H, W).
    """
    batch, channels, height, width = left.shape
    volume = left.new_zeros(batch, 2 * channels, disparities, height, width)
    for d in range(min(disparities, width)):
        volume[:, :channels, d, :, d:] = left[..., d:]
        volume[:, channels:, d, :, d:] = right[..., : width - d]
    return volume
