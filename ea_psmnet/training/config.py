"""The settings of a training run, without importing torch; the defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ea_psmnet.machine import Device

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Raises:
        ValueError: a value is out of range or two do not go together; the message says what to do.
    """

    out: Path
    """Run folder: checkpoints, weights, TensorBoard logs. The same command continues a run."""
    data: Literal["sceneflow", "folder", "synthetic"] = "sceneflow"
    """Dataset; `synthetic` renders endless scenes while training."""
    root: Path | None = None
    """Folder of the dataset; not needed for `synthetic`."""
    render_pass: Literal["clean", "final"] = "clean"
    """Which Scene Flow images."""
    preset: str = "ea-psmnet"
    """Network: psmnet, ea-psmnet or nonlocal-psmnet, each also with -small."""
    init: Path | None = None
    """Start from these weights; attention modules they lack start as the identity."""
    max_disparity: int = 192
    """Disparities searched, in pixels; a multiple of 16."""
    crop: tuple[int, int] = (256, 512)
    """Height and width of the random crop, multiples of 16."""
    batch: int = 24
    """Samples a step over all processes."""
    micro_batch: int | None = None
    """Samples a process holds at once; default: its share of the batch."""
    lr: float = 2e-3
    """Learning rate of Adam (0.9, 0.999)."""
    schedule: Literal["constant", "one-cycle"] = "constant"
    """Course of the learning rate; `one-cycle` rises to it and falls to nothing."""
    epochs: int = 100
    """Passes over the dataset; an epoch of `synthetic` is as long as Scene Flow's, 35,454."""
    steps: int | None = None
    """Stop after this many steps instead."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions; auto is bf16 where the processor is fast at it."""
    device: Device = "auto"
    """Where to train."""
    workers: int = 2
    """Processes that load or render samples; 0 does it in between the steps."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Of the initial weights, the data order and the crops."""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "epochs", "steps", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")
        if any(side < 16 or side % 16 for side in self.crop):
            raise ValueError(f"crop sides must be multiples of 16, not {self.crop}")
        if self.max_disparity > self.crop[1]:
            raise ValueError(
                f"max disparity {self.max_disparity} is wider than the crop ({self.crop[1]}): "
                "lower it or widen the crop"
            )
        if self.root is None and self.data != "synthetic":
            raise ValueError(f"data '{self.data}' needs --root, its folder")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        paths = {n: str(v) for n, v in asdict(self).items() if isinstance(v, Path)}
        return asdict(self) | paths | {"crop": list(self.crop)}
