"""Cost aggregation: stacked hourglasses or plain residual blocks (PSMNet, section 3.4, table 1).

Shapes: B batch, C = 32 * width, K = D / 4 disparities, h and w a quarter of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ea_psmnet.attention import build_attention
from ea_psmnet.models.config import HOURGLASS_SITES, SCALE, PSMNetConfig
from ea_psmnet.models.features import Guides
from ea_psmnet.models.layers import ScoreConv3d, VolumeConv3d, conv2d_bn, conv3d_bn, deconv3d_bn
from ea_psmnet.models.normalisation import BatchNorm3d, batch_norms
from ea_psmnet.models.volume import Parts
from ea_psmnet.ops.precision import widen


def _attention_at(config: PSMNetConfig, site: str) -> nn.Module:
    mechanism = config.attention if site in config.attention_sites else "none"
    options = config.attention_options if mechanism != "none" else {}
    return build_attention(mechanism, config.site(site)[1], **options)


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


class Excitation(nn.Module):
    """Scales a volume's channels by features of the left image, equally at all disparities.

    Guided cost volume excitation (Bangunharcana et al., "Correlate-and-Excite: Real-Time Stereo
    Matching via Guided Cost Volume Excitation", IROS 2021, section III-C): correlations alone
    cannot distinguish an edge from a wall.
    """

    def __init__(self, guide: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(conv2d_bn(guide, guide // 2, 1), nn.ReLU(inplace=True)),
            nn.Conv2d(guide // 2, channels, 1),
        )

    def forward(self, volume: Tensor, guide: Tensor) -> Tensor:
        """Scale a volume (B, C, K, h, w) by a guide map (B, guide, h, w)."""
        gates = self.layers(guide).sigmoid().unsqueeze(2)
        if not self.training:
            return volume * gates
        # With channels last, torch adds up the gates' gradients in an eighth of the time.
        return (volume.movedim(1, -1) * gates.movedim(1, -1)).movedim(-1, 1)


class Skips(NamedTuple):
    """Maps that one hourglass passes to the next, both at 1/8: (B, 2C, K/2, h/2, w/2)."""

    encoder: Tensor
    decoder: Tensor


class Hourglass(nn.Module):
    """Down to 1/16 and back, with attention at four places.

    Sums are made in place where they follow a normalisation, whose backward needs no output.
    """

    def __init__(self, config: PSMNetConfig, index: int, guides: Mapping[int, int]) -> None:
        super().__init__()
        narrow, wide = config.channels(32), config.inner_channels
        self.down1 = nn.Sequential(conv3d_bn(narrow, wide, stride=2), nn.ReLU(inplace=True))
        self.refine1 = conv3d_bn(wide, wide)
        self.down2 = nn.Sequential(conv3d_bn(wide, wide, stride=2), nn.ReLU(inplace=True))
        self.refine2 = nn.Sequential(conv3d_bn(wide, wide), nn.ReLU(inplace=True))
        self.up2 = deconv3d_bn(wide, wide)
        self.up1 = deconv3d_bn(wide, narrow)
        self.attention = nn.ModuleDict(
            {site: _attention_at(config, f"hourglass{index}.{site}") for site in HOURGLASS_SITES}
        )
        self.excites = config.excitation
        if self.excites:
            self.excitations = nn.ModuleList(
                Excitation(guides[scale * SCALE], wide) for scale in (2, 4)
            )

    def forward(
        self,
        x: Tensor,
        first_encoder: Tensor | None,
        last_decoder: Tensor | None,
        guides: Guides,
    ) -> tuple[Tensor, Skips]:
        """(B, 2C, K/2, h/2, w/2) to (B, C, K, h, w), and the skips.

        Args:
            x: Output of `down1` for the volume so far, (B, 2C, K/2, h/2, w/2).
            first_encoder: Encoder skip of the first hourglass; None in the first one.
            last_decoder: Decoder skip of the previous hourglass; None in the first one.
            guides: Guide maps of the left image, for excitation.
        """
        encoded = self.refine1(x)  # (B, 2C, K/2, h/2, w/2)
        encoded = F.relu_(encoded if last_decoder is None else encoded.add_(last_decoder))
        if self.excites:
            encoded = self.excitations[0](encoded, guides[2 * SCALE])
        encoded = self.attention["encoder"](encoded)
        bottom = self.refine2(self.down2(encoded))  # (B, 2C, K/4, h/4, w/4)
        if self.excites:
            bottom = self.excitations[1](bottom, guides[4 * SCALE])
        bottom = self.attention["bottleneck"](bottom)
        skip = encoded if first_encoder is None else first_encoder
        decoded = F.relu_(self.up2(bottom).add_(skip))  # (B, 2C, K/2, h/2, w/2)
        decoded = self.attention["decoder"](decoded)
        return self.attention["output"](self.up1(decoded)), Skips(encoded, decoded)


class Aggregation(nn.Module):
    """A stem, residual blocks and attention over the volume, which both kinds begin with.

    Args:
        config: Configuration of the network.
        parts: Channels of each part of the volume.
        guides: Channels of the image's guide maps by their scale.
    """

    checkpointing: bool = False
    """Gradient checkpointing: keep only the inputs of parts and recompute their activations."""
    classifiers: nn.ModuleList
    """Layers from volumes to scores; only the score of the last is used in evaluation."""

    def __init__(
        self, config: PSMNetConfig, parts: Sequence[int], guides: Mapping[int, int]
    ) -> None:
        super().__init__()
        channels = config.channels(32)
        first = nn.Sequential(VolumeConv3d(parts, channels), BatchNorm3d(channels))
        self.stem = nn.Sequential(
            *(first, nn.ReLU(inplace=True)),
            *(conv3d_bn(channels, channels), nn.ReLU(inplace=True)),
        )
        self.residuals = nn.ModuleList(Residual(channels) for _ in range(config.residual_blocks))
        self.attention = _attention_at(config, "volume")
        self.excite = Excitation(guides[SCALE], channels) if config.excitation else None

    def forward(self, volume: Parts, guides: Guides) -> list[Tensor]:
        """A volume and guide maps of the left image to scores (B, K, h, w), the best last."""
        raise NotImplementedError

    def run(self, part: nn.Module, *inputs: Any) -> Any:
        """Apply a part, with gradient checkpointing if it is on; results are the same."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _untracked(part)

        return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)

    def base(self, volume: Parts, guides: Guides) -> Tensor:
        """The parts of a volume to one of C channels, (B, C, K, h, w)."""
        x = self.run(self.stem, volume)
        if self.excite is not None:
            x = self.excite(x, guides[SCALE])
        for residual in self.residuals:
            x = self.run(residual, x)
        return self.attention(x)


class HourglassAggregation(Aggregation):
    """Stacked hourglasses with a classifier after each; every score is added to the last one."""

    def __init__(
        self, config: PSMNetConfig, parts: Sequence[int], guides: Mapping[int, int]
    ) -> None:
        super().__init__(config, parts, guides)
        channels = config.channels(32)
        self.hourglasses = nn.ModuleList(
            Hourglass(config, index, guides) for index in range(1, config.hourglasses + 1)
        )
        self.classifiers = nn.ModuleList(Classifier(channels) for _ in self.hourglasses)

    def forward(self, volume: Parts, guides: Guides) -> list[Tensor]:
        """See `Aggregation.forward`; one score for each hourglass."""
        base = self.base(volume, guides)
        scores: list[Tensor] = []
        x, first_encoder, last_decoder = base, None, None
        for hourglass, classifier in zip(self.hourglasses, self.classifiers, strict=True):
            # Before the rest, so that the volume so far is freed once it is no longer needed.
            x = self.run(cast(Hourglass, hourglass).down1, x)
            x, skips = self.run(hourglass, x, first_encoder, last_decoder, guides)
            x = x.add_(base)
            first_encoder = skips.encoder if first_encoder is None else first_encoder
            last_decoder = skips.decoder
            score = widen(self.run(classifier, x).squeeze(1))
            scores.append(score + scores[-1] if scores else score)
        return scores


class BasicAggregation(Aggregation):
    """Residual blocks and one classifier: PSMNet's `basic`."""

    def __init__(
        self, config: PSMNetConfig, parts: Sequence[int], guides: Mapping[int, int]
    ) -> None:
        super().__init__(config, parts, guides)
        self.classifiers = nn.ModuleList([Classifier(config.channels(32))])

    def forward(self, volume: Parts, guides: Guides) -> list[Tensor]:
        """See `Aggregation.forward`; one score."""
        x = self.base(volume, guides)
        return [widen(self.run(self.classifiers[0], x).squeeze(1))]


def build_aggregation(
    config: PSMNetConfig, parts: Sequence[int], guides: Mapping[int, int]
) -> Aggregation:
    """Build the aggregation that a configuration names; arguments as in `Aggregation`."""
    kinds = {"hourglass": HourglassAggregation, "basic": BasicAggregation}
    return kinds[config.aggregation](config, parts, guides)


@contextmanager
def _untracked(part: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: they have seen a batch that is recomputed."""
    norms = list(batch_norms(part))
    momenta = [norm.momentum for norm in norms]
    counts = [(n, n.clone()) for norm in norms if (n := norm.num_batches_tracked) is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)
