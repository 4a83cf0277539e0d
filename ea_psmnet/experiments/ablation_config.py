"""The configuration of an ablation; imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets.names import DatasetName
from ea_psmnet.machine import Device
from ea_psmnet.tables import check_range

__all__ = ["MAY_CHANGE", "RENDERED", "AblationConfig", "Question"]

RENDERED = "rendered"
"""The name of the test set that every ablation has."""

Question = Literal["normalisation", "sites", "key-channels", "mechanism", "heads", "positions"]
"""What is varied: Shen et al.'s Tables 8, 9 and 10, what stands in the module's place, and what its
keys know of where they are."""

MAY_CHANGE = frozenset({"out", "device", "workers", "seeds", "variants", "eval_roots"})
"""Settings that a continued ablation may change: more runs, or the same ones elsewhere."""

_MOST = {"batch": 2**16, "steps": 10**9, "scenes": 10**6, "test_scenes": 10**6}


@dataclass(frozen=True)
class AblationConfig:
    """One ablation: variants times seeds, trained alike.

    Raises:
        ValueError: a value is out of range; the message says what is allowed.
    """

    out: Path
    """Folder of the ablation: scenes, runs, report. The same command continues it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trains every variant, from the same weights and with the same samples in one order."""
    variants: tuple[str, ...] = ()
    """Others than the question's own, as efficient@bottleneck,heads=2; differences are to the
    first."""
    sites: str = "encoder"
    """Where attention is placed by variants that do not say, as bottleneck or volume+decoder."""
    preset: str = "psmnet-small"
    """Network that attention joins, as light."""
    width: float | None = None
    """Channels of the volume relative to the published network's; default: the preset's."""
    max_disparity: int = 96
    """Disparities searched, in pixels; a multiple of 16."""
    crop: tuple[int, int] = (128, 256)
    """Height and width of the random crop, multiples of 16."""
    init: Path | None = None
    """Checkpoint whose weights, but for attention's, all runs start from: seeds then differ in
    their samples alone. Default: weights drawn anew for each seed."""
    batch: int = 4
    """Samples a step."""
    lr: float = 1e-3
    """Highest learning rate; its course is one-cycle."""
    steps: int = 400
    """Steps of every run."""
    augment: Literal["none", "robust"] = "none"
    """Changes of the training samples, as of `train`."""
    cross_entropy: float = 0.0
    """Factor of the cross-entropy in the loss, as of `train`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions in training."""
    data: DatasetName = "sceneflow"
    """Kind of dataset at --root."""
    root: Path | None = None
    """Dataset to train on; default: scenes rendered once for all runs into the folder, which
    another ablation can take as OUT/scenes."""
    scenes: int = 400
    """Training scenes to render where there is no --root."""
    test_scenes: int = 40
    """Rendered scenes to measure errors on: the same in every ablation of one crop."""
    eval_roots: tuple[Path, ...] = ()
    """Datasets to measure errors on besides, as real pairs."""
    device: Device = "auto"
    """Where to compute."""
    workers: int = 1
    """Processes that load samples; they do not change them."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_range(name, getattr(self, name), 1, most)
        for seed in self.seeds:
            check_range("a seed", seed, 0, 2**32 - 1)
        for side in self.crop:
            check_range("a side of crop", side, 16, 2**14)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, not {self.seeds}")
        if any(side < 16 or side % 16 for side in self.crop):
            raise ValueError(f"crop sides must be multiples of 16, not {self.crop}")
        if len({RENDERED, *self.tests}) <= len(self.eval_roots):
            raise ValueError(
                f"eval_roots {', '.join(map(str, self.eval_roots))} are told apart by the folders' "
                f"names, which must differ from each other and from '{RENDERED}'"
            )
        if self.max_disparity > self.crop[1]:
            raise ValueError(
                f"max disparity {self.max_disparity} is wider than the crop ({self.crop[1]})"
            )

    @property
    def scene_size(self) -> tuple[int, int]:
        """Height and width of rendered scenes: a quarter more than the crop, to draw crops from."""
        return 5 * self.crop[0] // 4, 5 * self.crop[1] // 4

    @property
    def tests(self) -> dict[str, Path]:
        """The datasets to measure errors on besides the rendered one, by their folders' names."""
        return {root.resolve().name: root for root in self.eval_roots}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
