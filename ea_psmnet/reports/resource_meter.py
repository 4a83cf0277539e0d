"""Measure one forward of a module in training: bytes of its tensors, operations of its products."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Measured", "measure", "operation_counter"]


@dataclass(frozen=True)
class Measured:
    """One forward with gradients recorded."""

    kept_bytes: int
    """Still held when it ends: the output, and what the backward will need."""
    peak_bytes: int
    """Most held at one time in between, without the input and the parameters."""
    products: int
    """Operations of convolutions and matrix products."""


def measure(module: nn.Module, volume: Tensor) -> Measured:
    """Run a module once on a volume and count.

    Memory is the sizes of all storages that torch's operators return, from their birth until they
    are freed: tensors that live inside one operator do not show. Operations are those that torch's
    `FlopCounterMode` counts, two for each multiply-add of a convolution, a matrix product or
    `scaled_dot_product_attention`: nothing element by element, no softmax, normalisation or bias.

    Args:
        module: put into training mode; in float32, or float64 for a volume of that type.
        volume: (B, C, D, H, W); in half precision the module runs under autocast, as in training.
    """
    half = volume.element_size() < 4
    module.to(torch.float32 if half else volume.dtype).train()
    volume = volume.detach().requires_grad_()
    allocations = _Allocations()
    autocast = torch.autocast(volume.device.type, volume.dtype if half else None, enabled=half)
    with autocast, operation_counter() as counter, allocations:
        output = module(volume)
    kept = allocations.held
    del output  # alive until here, with all that its backward needs
    return Measured(kept, allocations.peak, counter.get_total_flops())


def operation_counter() -> FlopCounterMode:
    """Torch's counter, that of 2.11 too with `scaled_dot_product_attention` on CPUs."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_operations})


def _attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """From shapes (B, heads, n, channels)."""
    return int(sdpa_flop_count(query, key, value))


class _Allocations(TorchDispatchMode):
    """Bytes of the storages that operators make while this is active."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in known and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.held += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.held)
        return result

    def _free(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
