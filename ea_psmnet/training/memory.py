"""How much memory a training step needs, before the first one, and how much there is.

The estimate is measured, not written down: the network runs forward and backward on three small
volumes while the bytes of all living tensors are counted; what grows with pixels, with volume and
with its square is solved for and taken to the real size.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ea_psmnet.attention import closed_form
from ea_psmnet.losses import stereo_loss
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.training.precision import Arithmetic

__all__ = ["LiveBytes", "MemoryEstimate", "estimate_memory"]

_PROBES = ((64, 64, 32), (64, 128, 64), (128, 128, 96))
"""Height, width and disparities of the small volumes."""

_SLACK = 1.3
"""Over the living tensors: what allocators lose between them and convolutions work in."""

_FIRST_USE = 2**29
"""Whatever the size: what libraries load and allocate in the first steps, and gaps in the heap. At
256x512 and 192 disparities a CPU's resident memory grew by 0.25 to 0.5 GiB beside the samples'."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step."""

    fixed: int
    """Weights, gradients, optimiser, average, and what libraries take on their first use."""
    sample: int
    """Of every sample of a micro-batch."""

    def total(self, micro: int) -> int:
        """Bytes with so many samples at once."""
        return self.fixed + micro * self.sample

    def most(self, memory: int) -> int:
        """Samples that fit."""
        return max(0, (memory - self.fixed) // max(1, self.sample))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make while it is entered.

    Example:
        >>> with LiveBytes() as live:
        ...     torch.zeros(256) + torch.zeros(256)
        >>> live.peak
        3072
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves([args, kwargs]) if _is_plain(t)}
        for made in filter(_is_plain, tree_leaves(result)):
            storage = made.untyped_storage()
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        self._known[key] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def estimate_memory(
    config: PSMNetConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    checkpointing: bool = False,
    ema: bool = False,
) -> MemoryEstimate:
    """Estimate a training step.

    Args:
        config: the network.
        size: height and width of the crop.
        dtype: of autocast.
        checkpointing: compute the hourglasses again in the backward pass.
        ema: an average of the weights is kept.
    """
    parameters = sum(p.numel() for p in _network(config, 16).parameters())
    probes = _PROBES if _has_map(config) else _PROBES[1:]
    terms = [_terms(*probe)[: len(probes)] for probe in probes]
    peaks = [_peak(config, probe, dtype, checkpointing) for probe in probes]
    growth = np.linalg.solve(terms, peaks).clip(min=0)  # nothing shrinks memory, but rounding may
    sample = float(growth @ _terms(*size, config.max_disparity)[: len(probes)])
    copies = 4 + int(ema)  # weight, gradient, two moments of Adam
    return MemoryEstimate(
        fixed=_FIRST_USE + 4 * copies * parameters,
        sample=math.ceil(_SLACK * sample),
    )


def _terms(height: int, width: int, disparities: int) -> np.ndarray:
    """What memory may be proportional to, in numbers of like size."""
    pixels, volume = height * width / 2**13, height * width * disparities / 2**19
    return np.array([pixels, volume, volume**2])


def _peak(
    config: PSMNetConfig, probe: tuple[int, int, int], dtype: torch.dtype, checkpointing: bool
) -> int:
    """Bytes of living tensors at the worst moment of one forward and backward pass."""
    height, width, disparities = probe
    network = _network(config, disparities).train()
    network.checkpointing = checkpointing
    images = torch.full((2, 1, 3, height, width), 0.5)
    truth = torch.ones(1, height, width)
    arithmetic = Arithmetic(dtype, "cpu")
    with LiveBytes() as live:
        with arithmetic.autocast():
            outputs = network(images[0], images[1])
        for parameter in network.parameters():  # gradients are counted among the fixed
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        stereo_loss(outputs.disparities, truth, truth > 0, disparities).backward()
    return live.peak


def _network(config: PSMNetConfig, disparities: int) -> PSMNet:
    with torch.random.fork_rng(devices=[]):  # the run's own numbers are left as they were
        return build_model(replace(config, max_disparity=disparities))


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _has_map(config: PSMNetConfig) -> bool:
    """Whether the network's attention holds a weight for every pair of positions."""
    if config.attention == "none":
        return False
    return closed_form(config.attention, (2, 2, 2), 32, **config.attention_options).map_floats > 0
