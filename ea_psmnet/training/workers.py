"""The processes that load or render samples beside the training."""

from __future__ import annotations

from ea_psmnet.training.signals import ignore_signals

__all__ = ["prepare_worker"]


def prepare_worker(worker: int) -> None:
    """Set one up: signals are the main process's affair."""
    ignore_signals()
