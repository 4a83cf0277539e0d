"""How a batch is cut up: what fits the memory there is, and what to do when nothing does."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ea_psmnet.machine import available_memory, plannable
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.memory import MemoryEstimate, estimate_memory

__all__ = ["MemoryPlan", "check_statistics"]


class MemoryPlan:
    """What a run needs at which micro-batch, against what is free.

    Args:
        config: the run.
        structure: its network.
        dtype: of its autocast.
        device: where it trains.
    """

    def __init__(
        self,
        config: TrainingConfig,
        structure: PSMNetConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.structure, self.dtype = config, structure, dtype
        self.free = available_memory(device)
        self.estimate = self._estimate(structure, dtype, config.checkpointing)

    def micro_batch(self, share: int) -> int:
        """The largest micro-batch that fits and cuts a process's share evenly; 1 if none fits."""
        fitting = self.estimate.most(plannable(self.free))
        return max((n for n in range(1, share + 1) if share % n == 0 and n <= fitting), default=1)

    def check(self, micro: int) -> None:
        """Refuse a micro-batch that does not fit.

        Raises:
            ValueError: with what would help.
        """
        needed = self.estimate.total(micro)
        if needed > self.free:
            raise ValueError(
                f"a micro-batch of {micro} needs about {_gib(needed)} of memory, {_gib(self.free)} "
                f"are free: {self._fix(micro)}; or try all the same with --no-memory-check"
            )

    def _fix(self, micro: int) -> str:
        """What would make it fit, by the same estimate."""
        smaller = [n for n in range(1, micro) if micro % n == 0 and self._fits(self.estimate, n)]
        if smaller:
            return f"take --micro-batch {smaller[-1]}"
        for option, changed in self._alternatives().items():
            estimate = self._estimate(*changed)
            if self._fits(estimate, 1):
                return f"take {option} with --micro-batch 1 (about {_gib(estimate.total(1))})"
        return "lower --crop or --max-disparity, or take a -small preset"

    def _alternatives(self) -> dict[str, tuple[PSMNetConfig, torch.dtype, bool]]:
        """Options that need less memory, with their network, type and checkpointing."""
        known, checkpointing = self.structure, self.config.checkpointing
        others = {}
        smaller = (
            replace(known, attention_sites=("bottleneck",)) if known.attention_sites else known
        )
        if known.attention == "dot_product" and smaller != known:  # its map is of the site's size
            others["--attention-sites bottleneck"] = (smaller, self.dtype, checkpointing)
        if not checkpointing:
            others["--checkpointing"] = (known, self.dtype, True)
        if self.dtype == torch.float32:
            others["--precision bf16"] = (known, torch.bfloat16, checkpointing)
        if not checkpointing and self.dtype == torch.float32:
            others["--checkpointing --precision bf16"] = (known, torch.bfloat16, True)
        return others

    def _estimate(
        self, structure: PSMNetConfig, dtype: torch.dtype, checkpointing: bool
    ) -> MemoryEstimate:
        return estimate_memory(
            structure,
            self.config.crop,
            dtype,
            checkpointing=checkpointing,
            ema=self.config.ema is not None,
        )

    def _fits(self, estimate: MemoryEstimate, micro: int) -> bool:
        return estimate.total(micro) <= self.free


def check_statistics(config: TrainingConfig, structure: PSMNetConfig, micro: int) -> None:
    """Refuse batch normalisation over one number, which the 1/16 volume of one tiny crop would be.

    Raises:
        ValueError: with what would help.
    """
    numbers = micro * math.prod(side // 16 for side in (*config.crop, config.max_disparity))
    normalised = config.normalisation == "batch" and structure.aggregation == "hourglass"
    if normalised and numbers < 2:
        raise ValueError(
            f"batch normalisation finds a single number in crops of {config.crop}, "
            f"{config.max_disparity} disparities and a micro-batch of {micro}: enlarge one of them "
            "(--crop, --micro-batch), or take --normalisation group"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
