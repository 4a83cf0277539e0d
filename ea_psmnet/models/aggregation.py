"""Cost aggregation: stacked hourglasses or plain residual blocks (PSMNet, section 3.4, table 1).

Shapes: B batch, C = 32 * width, K = D / 4 disparities, h and w a quarter of the image.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention import build_attention
from ea_psmnet.models.config import HOURGLASS_SITES, PSMNetConfig
from ea_psmnet.models.layers import ScoreConv3d, conv3d_bn, deconv3d_bn, volume_conv_bn
from ea_psmnet.models.recompute import Recomputable
from ea_psmnet.ops.factored_volume import PairVolume
from ea_psmnet.ops.precision import widen

__all__ = ["BasicAggregation", "Classifier", "HourglassAggregation", "Residual"]


def _attention_at(config: PSMNetConfig, site: str, channels: int) -> nn.Module:
    mechanism = config.attention if site in config.attention_sites else "none"
    options = config.attention_options if mechanism != "none" else {}
    return build_attention(mechanism, channels, **options)


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(volume_conv_bn(channels, channels), nn.ReLU(inplace=True)),
        *(conv3d_bn(channels, channels), nn.ReLU(inplace=True)),
    )


class Residual(nn.Sequential):
    """Two convolutions whose result is added to the volume."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            conv3d_bn(channels, channels), nn.ReLU(inplace=True), conv3d_bn(channels, channels)
        )

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to the same."""
        return super().forward(volume).add_(volume)


class Classifier(nn.Sequential):
    """A convolution and one to a score."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            conv3d_bn(channels, channels), nn.ReLU(inplace=True), ScoreConv3d(channels)
        )


class Skips(NamedTuple):
    """What one hourglass hands to the next: both at 1/8, (B, 2C, K/2, h/2, w/2)."""

    encoder: Tensor
    decoder: Tensor


class Hourglass(nn.Module):
    """Down to 1/16 and back, with attention at four places.

    Sums are made in place where they follow a normalisation, whose backward needs no output.
    """

    def __init__(self, config: PSMNetConfig, index: int) -> None:
        super().__init__()
        narrow, wide = config.channels(32), config.channels(64)
        self.down1 = nn.Sequential(conv3d_bn(narrow, wide, stride=2), nn.ReLU(inplace=True))
        self.refine1 = conv3d_bn(wide, wide)
        self.down2 = nn.Sequential(conv3d_bn(wide, wide, stride=2), nn.ReLU(inplace=True))
        self.refine2 = nn.Sequential(conv3d_bn(wide, wide), nn.ReLU(inplace=True))
        self.up2 = deconv3d_bn(wide, wide)
        self.up1 = deconv3d_bn(wide, narrow)
        self.attention = nn.ModuleDict(
            {
                site: _attention_at(
                    config, f"hourglass{index}.{site}", narrow if site == "output" else wide
                )
                for site in HOURGLASS_SITES
            }
        )

    def forward(
        self, x: Tensor, first_encoder: Tensor | None, last_decoder: Tensor | None
    ) -> tuple[Tensor, Skips]:
        """(B, 2C, K/2, h/2, w/2) to (B, C, K, h, w), and the skips.

        Args:
            x: what `down1` makes of the volume so far, (B, C, K, h, w).
            first_encoder: the first hourglass's encoder skip; None in the first one.
            last_decoder: the previous hourglass's decoder skip; None in the first one.
        """
        encoded = self.refine1(x)  # (B, 2C, K/2, h/2, w/2)
        encoded = F.relu_(encoded if last_decoder is None else encoded.add_(last_decoder))
        encoded = self.attention["encoder"](encoded)
        bottom = self.refine2(self.down2(encoded))  # (B, 2C, K/4, h/4, w/4)
        bottom = self.attention["bottleneck"](bottom)
        skip = encoded if first_encoder is None else first_encoder
        decoded = F.relu_(self.up2(bottom).add_(skip))  # (B, 2C, K/2, h/2, w/2)
        decoded = self.attention["decoder"](decoded)
        return self.attention["output"](self.up1(decoded)), Skips(encoded, decoded)


class HourglassAggregation(Recomputable):
    """Three hourglasses, a classifier behind each, every score added to the one before."""

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        channels = config.channels(32)
        self.stem = _stem(channels)
        self.residuals = nn.ModuleList([Residual(channels)])
        self.attention = _attention_at(config, "volume", channels)
        self.hourglasses = nn.ModuleList(Hourglass(config, index) for index in (1, 2, 3))
        self.classifiers = nn.ModuleList(Classifier(channels) for _ in self.hourglasses)

    def forward(self, volume: PairVolume | Tensor) -> list[Tensor]:
        """The volume, by its factors or (B, 2C, K, h, w), to three scores (B, K, h, w)."""
        base = self.run(self.stem, volume)  # (B, C, K, h, w)
        base = self.attention(self.run(self.residuals[0], base))
        scores: list[Tensor] = []
        x, first_encoder, last_decoder = base, None, None
        for hourglass, classifier in zip(self.hourglasses, self.classifiers, strict=True):
            # Before the rest, so that a volume that is done with does not wait in memory.
            x = self.run(cast(Hourglass, hourglass).down1, x)
            x, skips = self.run(hourglass, x, first_encoder, last_decoder)
            x = x.add_(base)
            first_encoder = skips.encoder if first_encoder is None else first_encoder
            last_decoder = skips.decoder
            score = widen(self.run(classifier, x).squeeze(1))
            scores.append(score + scores[-1] if scores else score)
        return scores


class BasicAggregation(Recomputable):
    """Four residual blocks after the stem and one classifier: PSMNet's `basic`."""

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        channels = config.channels(32)
        self.stem = _stem(channels)
        self.residuals = nn.ModuleList(Residual(channels) for _ in range(4))
        self.attention = _attention_at(config, "volume", channels)
        self.classifiers = nn.ModuleList([Classifier(channels)])

    def forward(self, volume: PairVolume | Tensor) -> list[Tensor]:
        """The volume, by its factors or (B, 2C, K, h, w), to one score (B, K, h, w)."""
        x = self.run(self.stem, volume)
        for residual in self.residuals:
            x = self.run(residual, x)
        return [widen(self.run(self.classifiers[0], self.attention(x)).squeeze(1))]
