"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ea_psmnet.machine import Precision, use_threads

if TYPE_CHECKING:
    from ea_psmnet.inference.matcher import StereoMatcher

__all__ = ["MatcherOptions"]


@dataclass(frozen=True)
class MatcherOptions:
    """Network that predicts, and its options."""

    checkpoint: Path | None = None
    """Weights (.safetensors), an original PSMNet file (.tar), a run folder, or the name of bundled
    weights; default: ea-light."""
    max_disparity: int | None = None
    """Number of disparities to search, in pixels; default: as in training."""
    align_corners: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Corner alignment of upsampling; true for original checkpoints of torch 0.4 (2018)."""
    peak_reach: int | None = None
    """Average over this number of levels (4 pixels each) on either side of the most likely
    disparity, or over all levels (0), as published; default: what the checkpoint states."""
    attention: bool = True
    """Use the attention of the network; without it, its effect shows."""
    device: Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:NUMBER}")] = "auto"
    """Device to compute on."""
    precision: Precision = "auto"
    """Exact is float32; fast, like auto, is bfloat16 where the device is fast at it."""

    threads: int | None = None
    """Number of CPU threads; default: one per core, or OMP_NUM_THREADS."""

    def load(self, memory: str | None = None) -> StereoMatcher:
        """Load the matcher; for arguments and errors see `StereoMatcher.load`."""
        from ea_psmnet.inference.matcher import StereoMatcher

        use_threads(self.threads)
        return StereoMatcher.load(
            self.checkpoint,
            max_disparity=self.max_disparity,
            align_corners=self.align_corners,
            peak_reach=self.peak_reach,
            attention=self.attention,
            device=self.device,
            precision=self.precision,
            memory=memory,
        )
