"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

from ea_psmnet.training.config import Schedule, TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate at a step, counted from 0, of a run of `steps` steps."""
    return config.lr * _SCHEDULES[config.schedule](config, step, steps)


def _constant(config: TrainingConfig, step: int, steps: int) -> float:
    return 1.0


def _step(config: TrainingConfig, step: int, steps: int) -> float:
    return config.decay ** sum(step >= share * steps for share in config.milestones)


def _cosine(config: TrainingConfig, step: int, steps: int) -> float:
    """Cosine decay to zero (Loshchilov and Hutter, ICLR 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def _one_cycle(config: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then cosine decay to zero."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return _cosine(config, step - rise, max(1, steps - rise))


_SCHEDULES: dict[Schedule, Callable[[TrainingConfig, int, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
