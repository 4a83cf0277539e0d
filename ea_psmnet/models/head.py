"""Disparity heads: from scores of disparity levels to the disparity of every image pixel.

Shapes: B batch, K disparity levels, h and w of the volume, H = 4h, W = 4w of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.models.config import SCALE, PSMNetConfig
from ea_psmnet.models.features import Guides
from ea_psmnet.models.layers import conv2d_bn
from ea_psmnet.ops.precision import widen
from ea_psmnet.ops.regression import (
    around_peak,
    convex_upsampling,
    convex_upsampling_reference,
    likeliest,
    near_peak,
    neighbours,
    soft_argmin,
    soft_argmin_reference,
)
from ea_psmnet.tables import build_choice, whole_number

_SLAB_BYTES = 2**28


class Choice(NamedTuple):
    """Cells and the weights by which each pixel chooses among the nine around it."""

    cells: Tensor
    """(B, h, w), disparities in pixels."""
    weights: Tensor
    """(B, 9 * 16, h, w), logits as for `convex_upsampling`."""

    def combine(self, reach: int = 0, *, plain: bool = False) -> Tensor:
        """Disparity (B, H, W) in pixels, a convex combination for each pixel.

        With a `reach`, only cells within this number of levels of the heaviest one count.
        """
        upsample = convex_upsampling_reference if plain else convex_upsampling
        return upsample(self.cells, self.weights, SCALE, reach=SCALE * reach or math.inf)

    def candidates(self) -> tuple[Tensor, Tensor]:
        """The nine disparities (B, 9, 1, h, w) and their logits (B, 9, 16, h, w)."""
        logits = widen(self.weights).unflatten(1, (9, SCALE**2))
        return neighbours(widen(self.cells)), logits


class DisparityHead(nn.Module):
    """Scores to disparity.

    Args:
        config: Configuration of the network.
        guides: Channels of the image's guide maps by their scale.
    """

    plain: bool = False
    """Whether to compute as the published code does, which takes more time and memory."""
    guided: bool = False
    """Whether `forward` needs guide maps."""
    first: float
    """Disparity of level 0, in pixels; each further level is `SCALE` pixels more."""

    def __init__(self, config: PSMNetConfig, guides: Mapping[int, int]) -> None:
        super().__init__()
        self.align_corners = config.align_corners
        self.peak_reach = config.peak_reach

    def forward(self, scores: Sequence[Tensor], guides: Guides) -> list[Tensor]:
        """Scores (B, K, h, w) of each classifier to disparities (B, H, W) in pixels.

        Higher scores are likelier. Guide maps are those of the left image.
        """
        raise NotImplementedError

    def choices(self, scores: Sequence[Tensor], guides: Guides) -> list[Choice] | None:
        """What `forward` chooses from for each score, if it chooses among cells."""
        return None

    @staticmethod
    def working_bytes(config: PSMNetConfig, pixels: int, cells: int) -> float:
        """Bytes of living tensors in `forward` for one score in evaluation, at most.

        `pixels` is H * W, and `cells` K * h * w.
        """
        raise NotImplementedError

    @property
    def reach(self) -> int:
        """Levels that count on either side of the likeliest; 0 for all, as in training."""
        return 0 if self.training else self.peak_reach


class TrilinearHead(DisparityHead):
    """Trilinear upsampling to image resolution, softmax, expectation (PSMNet, section 3.5)."""

    first = (SCALE - 1) / 2

    @staticmethod
    def working_bytes(config: PSMNetConfig, pixels: int, cells: int) -> float:
        """See `DisparityHead.working_bytes`: scores, and scores as tall as the image."""
        return 28.0 * cells + 3 * _SLAB_BYTES * config.align_corners

    def forward(self, scores: Sequence[Tensor], guides: Guides) -> list[Tensor]:
        """See `DisparityHead.forward`."""
        return [self._regress(score) for score in scores]

    def _regress(self, score: Tensor) -> Tensor:
        levels, height, width = (SCALE * side for side in score.shape[1:])
        align, reach = self.align_corners, self.reach
        if self.plain or torch.is_grad_enabled() or not align:
            regress = soft_argmin_reference if self.plain else soft_argmin
            return regress(score, (levels, height, width), align_corners=align, reach=reach)
        # Aligned corners need the whole (B, D, H, W): upsample rows first, then work in slabs.
        tall = F.interpolate(
            score, (height, score.shape[-1]), mode="bilinear", align_corners=True
        )  # (B, K, H, w)
        rows = max(1, _SLAB_BYTES // (4 * len(score) * levels * width))
        slabs = [
            soft_argmin_reference(
                part, (levels, part.shape[-2], width), align_corners=True, reach=reach
            )
            for part in tall.split(rows, dim=-2)
        ]
        return torch.cat(slabs, dim=1)


class LearnedHead(DisparityHead):
    """Expectation at the volume's resolution, then convex upsampling by the image's features.

    Every pixel is a convex combination of the nine cells around it (Teed and Deng, "RAFT", ECCV
    2020, section 3.3), so that edges follow the image. With `top_k`, the expectation is taken over
    the likeliest levels only (Bangunharcana et al., "CoEx", IROS 2021, section III-D). With
    `peak_reach`, evaluation takes it over the levels around the likeliest one instead, and of the
    nine cells over those around the heaviest one: foreground or background, but no mean of both.

    Args:
        config: Configuration of the network.
        guides: Channels of the image's guide maps by their scale.
        top_k: Number of levels; 0 for all.
    """

    guided = True
    first = 0.0

    @staticmethod
    def working_bytes(config: PSMNetConfig, pixels: int, cells: int) -> float:
        """See `DisparityHead.working_bytes`: upsampling weights, and scores."""
        return 101 * pixels + 12 * cells

    def __init__(self, config: PSMNetConfig, guides: Mapping[int, int], *, top_k: int = 0) -> None:
        super().__init__(config, guides)
        if whole_number("top_k", top_k) not in range(config.levels + 1):
            raise ValueError(f"top_k must be 0 to {config.levels} levels, not {top_k!r}")
        self.top_k = top_k
        self.weights = nn.Sequential(
            *(conv2d_bn(SCALE * guides[2] + guides[SCALE], 64), nn.ReLU(inplace=True)),
            nn.Conv2d(64, 9 * SCALE**2, 1),
        )

    def forward(self, scores: Sequence[Tensor], guides: Guides) -> list[Tensor]:
        """See `DisparityHead.forward`."""
        choices = self.choices(scores, guides)
        return [choice.combine(self.reach, plain=self.plain) for choice in choices]

    def choices(self, scores: Sequence[Tensor], guides: Guides) -> list[Choice]:
        """See `DisparityHead.choices`."""
        fine = F.pixel_unshuffle(guides[2], SCALE // 2)
        weights = self.weights(torch.cat([fine, guides[SCALE]], dim=1))  # (B, 9 * 16, h, w)
        return [Choice(self._expect(widen(score)), weights) for score in scores]

    def _expect(self, score: Tensor) -> Tensor:
        """(B, K, h, w) to the disparity of the cells (B, h, w), in pixels."""
        levels = torch.arange(score.shape[1], device=score.device).view(-1, 1, 1)
        if 2 * self.reach >= score.shape[1]:
            score = near_peak(score, self.reach)
        elif self.reach:
            score, levels = around_peak(score, self.reach)
        elif self.top_k:
            score, levels = likeliest(score, min(self.top_k, score.shape[1]))
        return SCALE * (score.softmax(dim=1) * levels).sum(dim=1) + self.first


HEADS: dict[str, type[DisparityHead]] = {
    "trilinear": TrilinearHead,
    "learned": LearnedHead,
}


def build_head(config: PSMNetConfig, guides: Mapping[int, int]) -> DisparityHead:
    """Build the disparity head that a configuration names; arguments as in `DisparityHead`.

    Raises:
        ValueError: Unknown name or option; the message lists the choices.
    """
    return build_choice("head", HEADS, config.head, config.head_options, config, guides)
