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
    """Which network predicts, and how."""

    checkpoint: Path | None = None
    """Weights (.safetensors), an original PSMNet's (.tar), a training run's folder, or the name of
    bundled ones, as ea-psmnet-small: the default."""
    max_disparity: int | None = None
    """Search this many pixels instead of what the network was trained for."""
    align_corners: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """True for original checkpoints trained with torch 0.4 (2018)."""
    peak_reach: int | None = None
    """Take the mean over this many levels of 4 pixels around the likeliest disparity, or over all
    (0), as published; default: what the checkpoint states."""
    attention: bool = True
    """With the network's attention, or without, to see what it is worth."""
    device: Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:NUMBER}")] = "auto"
    """Where to compute."""
    precision: Precision = "auto"
    """Float32 (exact), or bfloat16 where the processor is fast at it."""

    threads: int | None = None
    """Threads that compute on the CPU; default: one a core, or OMP_NUM_THREADS."""

    def load(self, memory: str | None = None) -> StereoMatcher:
        """The matcher; arguments and errors as of `StereoMatcher.load`."""
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
