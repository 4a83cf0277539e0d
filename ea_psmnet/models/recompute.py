"""Gradient checkpointing: activations computed again in the backward instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ea_psmnet.models.normalisation import batch_norms

__all__ = ["Recomputable"]


class Recomputable(nn.Module):
    """A module that keeps, when `checkpointing` is set, only its parts' inputs for the backward."""

    checkpointing: bool = False

    def run(self, part: nn.Module, *inputs: Any) -> Any:
        """What the part makes of its inputs; gradients and batch statistics are the same."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*inputs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _untracked(part)

        return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _untracked(part: nn.Module) -> Iterator[None]:
    """Running statistics have seen this batch already when it is computed again."""
    norms = list(batch_norms(part))
    momenta = [norm.momentum for norm in norms]
    counts = [(n, n.clone()) for norm in norms if (n := norm.num_batches_tracked) is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)
