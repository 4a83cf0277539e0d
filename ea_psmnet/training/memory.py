"""Memory: estimate the need of a training step, and plan the micro-batch that fits.

The estimate is a measurement: the network runs forward and backward on three small volumes while
the bytes of all living tensors are counted. Terms proportional to the pixels, to the volume and to
its square are fitted and extrapolated to the real size.
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
from ea_psmnet.machine import available_memory, plannable
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.step import Arithmetic


class MemoryBudget:
    """Compares the memory that a run needs with the memory that is free.

    Args:
        config: Configuration of the run.
        structure: Structure of its network.
        dtype: Autocast type.
        device: Device to train on.
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
        """Largest micro-batch that fits and divides a process's share of the batch; at least 1."""
        fitting = self.estimate.most(plannable(self.free))
        return max((n for n in range(1, share + 1) if share % n == 0 and n <= fitting), default=1)

    def check(self, micro: int) -> None:
        """Check that a micro-batch fits.

        Raises:
            ValueError: It does not; the message says what would help.
        """
        needed = self.estimate.total(micro)
        if needed > self.free:
            raise ValueError(
                f"a micro-batch of {micro} needs about {_gib(needed)} of memory, but only "
                f"{_gib(self.free)} is free: {self._fix(micro)}; or try anyway with "
                "--no-memory-check"
            )

    def _fix(self, micro: int) -> str:
        """Options that would make it fit, by the same estimate."""
        if (self.config.out / "config.json").is_file():
            return "close other programs, as a run that has begun keeps its settings"
        smaller = [n for n in range(1, micro) if micro % n == 0 and self._fits(self.estimate, n)]
        if smaller:
            return f"take --micro-batch {smaller[-1]}"
        for option, changed in self._alternatives().items():
            estimate = self._estimate(*changed)
            if self._fits(estimate, 1):
                return f"take {option} with --micro-batch 1 (about {_gib(estimate.total(1))})"
        return "lower --crop or --max-disparity, or take a -small preset"

    def _alternatives(self) -> dict[str, tuple[PSMNetConfig, torch.dtype, bool]]:
        """Options that need less memory, with network, type and checkpointing of each."""
        known, dtype, checkpointing = self.structure, self.dtype, self.config.checkpointing
        others = {}
        if known.attention == "dot_product":  # its map grows with the site
            smaller = replace(known, attention_sites=("bottleneck",))
            if smaller != known:
                others["--attention-sites bottleneck"] = (smaller, dtype, checkpointing)
        if not checkpointing:
            others["--checkpointing"] = (known, dtype, True)
        if dtype == torch.float32:
            others["--precision bf16"] = (known, torch.bfloat16, checkpointing)
        if not checkpointing and dtype == torch.float32:
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
    """Refuse batch normalisation over a single value, as at 1/16 of one tiny crop.

    Raises:
        ValueError: The message says what would help.
    """
    numbers = micro * math.prod(side // 16 for side in (*config.crop, config.max_disparity))
    normalised = config.normalisation == "batch" and structure.aggregation == "hourglass"
    if normalised and numbers < 2:
        raise ValueError(
            f"batch normalisation has a single value per channel in crops of {config.crop}, "
            f"{config.max_disparity} disparities and a micro-batch of {micro}: enlarge one of them "
            "(--crop, --micro-batch), or take --normalisation group"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


# Estimate -----------------------------------------------------------------------------------------


_PROBES = ((64, 64, 32), (64, 128, 64), (128, 128, 96))
"""Heights, widths and disparities of the small volumes."""

_SLACK = 1.3
"""Factor on the living tensors, for fragmentation and the workspaces of convolutions."""

_FIRST_USE = 2**29
"""Bytes that libraries allocate in the first steps, and heap fragmentation, at any size. At 256x512
and 192 disparities the resident memory grew by 0.25 to 0.5 GiB besides that of the samples."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training step in bytes."""

    fixed: int
    """Weights, gradients, optimiser, averaged weights, and first use of libraries."""
    sample: int
    """Memory per sample of a micro-batch."""

    def total(self, micro: int) -> int:
        """Bytes for a micro-batch of `micro` samples."""
        return self.fixed + micro * self.sample

    def most(self, memory: int) -> int:
        """Number of samples that fit into `memory` bytes."""
        return max(0, (memory - self.fixed) // max(1, self.sample))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations create while the context is active.

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
        """Run an operation and count its new tensors."""
        result = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves([args, kwargs]) if _is_plain(t)}
        for made in filter(_is_plain, tree_leaves(result)):
            storage = made.untyped_storage()
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known[id(storage)] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, id(storage))

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
    """Estimate the memory of a training step.

    Args:
        config: Structure of the network.
        size: Height and width of the crop.
        dtype: Autocast type.
        checkpointing: Whether the hourglasses are recomputed in the backward pass.
        ema: Whether averaged weights are kept.
    """
    parameters = sum(p.numel() for p in _network(config, 16).parameters())
    probes = _PROBES if _has_map(config) else _PROBES[1:]  # only the map is quadratic
    terms = [_terms(*probe)[: len(probes)] for probe in probes]
    peaks = [_peak(config, probe, dtype, checkpointing) for probe in probes]
    growth = np.linalg.solve(terms, peaks).clip(min=0)  # rounding may make terms negative
    sample = float(growth @ _terms(*size, config.max_disparity)[: len(probes)])
    copies = 4 + int(ema)  # weight, gradient, two moments of Adam
    return MemoryEstimate(
        fixed=_FIRST_USE + 4 * copies * parameters,
        sample=math.ceil(_SLACK * sample),
    )


def _has_map(config: PSMNetConfig) -> bool:
    """Whether an attention module stores weights between all pairs of positions."""
    options = config.attention_options
    channels = {config.site(site)[1] for site in config.attention_sites}
    costs = (closed_form(config.attention, (2, 2, 2), each, **options) for each in channels)
    return any(cost.map_floats for cost in costs)


def _terms(height: int, width: int, disparities: int) -> np.ndarray:
    """Terms that memory may be proportional to, scaled to similar magnitudes."""
    pixels, volume = height * width / 2**13, height * width * disparities / 2**19
    return np.array([pixels, volume, volume**2])


def _peak(
    config: PSMNetConfig, probe: tuple[int, int, int], dtype: torch.dtype, checkpointing: bool
) -> int:
    """Peak bytes of living tensors during one forward and backward pass."""
    height, width, disparities = probe
    network = _network(config, disparities).train()
    network.checkpointing = checkpointing
    images = torch.full((2, 1, 3, height, width), 0.5)
    truth = torch.ones(1, height, width)
    arithmetic = Arithmetic(dtype, "cpu")
    with LiveBytes() as live:
        with arithmetic.autocast():
            outputs = network(images[0], images[1])
        for parameter in network.parameters():  # gradients count as fixed memory
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        stereo_loss(outputs.disparities, truth, truth > 0, disparities).backward()
    return live.peak


def _network(config: PSMNetConfig, disparities: int) -> PSMNet:
    with torch.random.fork_rng(devices=[]):  # leaves the run's generator alone
        network = build_model(config)
    network.config = replace(config, max_disparity=disparities)
    return network


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
