"""The configuration of an ablation; imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ea_psmnet.datasets.names import DatasetName
from ea_psmnet.machine import Device
from ea_psmnet.tables import check_range
from ea_psmnet.training.config import plain

RENDERED = "rendered"
"""The name of the test set that every ablation has."""

Question = Literal["normalisation", "sites", "key-channels", "mechanism", "heads", "positions"]
"""What is varied. The first three are Tables 8, 9 and 10 of Shen et al.; the others vary the
mechanism, its heads, and the positions that its keys know."""

MAY_CHANGE = frozenset({"out", "device", "workers", "seeds", "variants", "eval_roots"})
"""Settings that may change when an ablation is continued."""

_MOST = {"batch": 2**16, "steps": 10**9, "scenes": 10**6, "test_scenes": 10**6}


@dataclass(frozen=True)
class AblationConfig:
    """Configuration of an ablation: variants times seeds, trained alike.

    Raises:
        ValueError: A value is out of range; the message says what is allowed.
    """

    out: Path
    """Folder of the ablation for scenes, runs and report. The same command continues it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds. For each seed, all variants start from the same weights and see the same samples in
    the same order."""
    variants: tuple[str, ...] = ()
    """Variants instead of the question's own, such as efficient@bottleneck,heads=2; differences are
    to the first."""
    sites: str = "encoder"
    """Places of attention for variants that name none, such as bottleneck or volume+decoder."""
    preset: str = "psmnet-small"
    """Network that attention is added to, such as light."""
    width: float | None = None
    """Channels of the volume relative to the published network; default: the preset's."""
    max_disparity: int = 96
    """Disparities to search, in pixels; a multiple of 16."""
    crop: tuple[int, int] = (128, 256)
    """Height and width of the random crop, multiples of 16."""
    init: Path | None = None
    """Checkpoint that all runs start from, without its attention; seeds then differ only in their
    samples. Default: random weights for every seed."""
    batch: int = 4
    """Samples per step."""
    lr: float = 1e-3
    """Highest learning rate of the one-cycle schedule."""
    steps: int = 400
    """Steps of every run."""
    augment: Literal["none", "robust"] = "none"
    """Augmentation of the training samples, see `train`."""
    cross_entropy: float = 0.0
    """Weight of the cross-entropy in the loss, see `train`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions in training."""
    data: DatasetName = "sceneflow"
    """Kind of the dataset at --root."""
    root: Path | None = None
    """Folder of the dataset to train on; default: scenes that are rendered once for all runs into
    OUT/scenes, which another ablation can use."""
    scenes: int = 400
    """Number of training scenes to render if there is no --root."""
    test_scenes: int = 40
    """Number of rendered test scenes, which depend only on crop and disparities."""
    eval_roots: tuple[Path, ...] = ()
    """Folders of further test sets, such as real pairs."""
    device: Device = "auto"
    """Device."""
    workers: int = 1
    """Processes that load samples."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_range(name, getattr(self, name), 1, most)
        check_range("workers", self.workers, 0, 1024)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")
        if not 0 <= self.cross_entropy < math.inf:
            raise ValueError(f"cross entropy must be 0 or more, not {self.cross_entropy}")
        for seed in self.seeds:
            check_range("a seed", seed, 0, 2**32 - 1)
        for side in self.crop:
            check_range("a side of crop", side, 16, 2**14)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, not {self.seeds}")
        if any(side % 16 for side in self.crop):
            raise ValueError(f"crop sides must be multiples of 16, not {self.crop}")
        if len({RENDERED, *self.tests}) <= len(self.eval_roots):
            raise ValueError(
                f"eval_roots {', '.join(map(str, self.eval_roots))} are told apart by the folders' "
                f"names: these must differ from each other and from '{RENDERED}'"
            )
        if self.data != "sceneflow" and self.root is None:
            raise ValueError(f"data '{self.data}' needs --root, its folder")
        if self.max_disparity > self.crop[1]:
            raise ValueError(
                f"max disparity {self.max_disparity} is wider than the crop ({self.crop[1]})"
            )

    @property
    def scene_size(self) -> tuple[int, int]:
        """Height and width of rendered scenes: a quarter more than the crop."""
        return 5 * self.crop[0] // 4, 5 * self.crop[1] // 4

    @property
    def tests(self) -> dict[str, Path]:
        """Folders of the test sets besides the rendered one, by name."""
        return {root.resolve().name: root for root in self.eval_roots}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: plain(value) for name, value in asdict(self).items()}
