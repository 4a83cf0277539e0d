"""Dot-product (non-local) attention (Wang et al., CVPR 2018) on a volume."""

from __future__ import annotations

from torch import Tensor, nn

from ea_psmnet.attention.volume import VolumeAttention, merge_heads, split_heads
from ea_psmnet.ops.attention import Normalisation, check_normalisation, dot_product_attention

__all__ = ["DotProductAttention"]


class DotProductAttention(VolumeAttention):
    """The non-local block: x + BN(W_z A(W_theta x, W_phi x) W_g x), with A of size n x n.

    Wang et al., "Non-local Neural Networks", CVPR 2018, equation 6 and figure 2. Keys, queries and
    values have C / 2 channels, the batch normalisation after the projection starts with gain zero
    (section 4.1), so a new block is the identity. Memory grows with the square of the number of
    positions: it fits at 1/16 of an image's resolution, rarely above.

    Args:
        channels: C of the volume.
        key_channels: channels of queries, keys and values; None for C / 2.
        normalisation: `softmax` (the embedded Gaussian), `scaling` (the dot product over n) or
            `none`.

    Raises:
        ValueError: the normalisation is unknown.

    Example:
        >>> DotProductAttention(32)(torch.randn(1, 32, 4, 8, 8)).shape
        torch.Size([1, 32, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        normalisation: Normalisation = "softmax",
    ) -> None:
        super().__init__()
        check_normalisation(normalisation)
        key_channels = channels // 2 if key_channels is None else key_channels
        self.normalisation: Normalisation = normalisation
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, key_channels, kernel_size=1)
        norm = nn.BatchNorm3d(channels)
        nn.init.zeros_(norm.weight)
        self.projection = nn.Sequential(nn.Conv3d(key_channels, channels, kernel_size=1), norm)

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        queries, keys, values = (
            split_heads(layer(volume), heads=1)  # (B, 1, k, n)
            for layer in (self.queries, self.keys, self.values)
        )
        gathered = dot_product_attention(queries, keys, values, self.normalisation)  # (B, 1, k, n)
        return self.projection(merge_heads(gathered, volume.shape[2:]).to(volume.dtype))
