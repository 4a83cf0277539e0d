"""`train`: from a dataset to a checkpoint."""

from __future__ import annotations

from typing import Annotated

import tyro

from ea_psmnet.training.config import TrainingConfig

__all__ = ["train"]


def train(config: Annotated[TrainingConfig, tyro.conf.arg(name="")]) -> None:
    """Train a network, or continue a run: the same command picks up at its last checkpoint."""
    from ea_psmnet.training.loop import train as run

    print(run(config))
