"""What a network can be measured at: prediction, a training step, a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.losses import stereo_loss
from ea_psmnet.machine import Device, Precision, choose_device, has_fast_bfloat16
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.reports.evaluation import evaluate
from ea_psmnet.reports.module_trace import ModuleTrace
from ea_psmnet.sample import StereoSample

__all__ = ["Measured", "Workload", "is_bfloat16", "on_dataset", "prediction", "training_step"]


_WHOLE = 2**62
"""Memory enough for any plan: the budget is to be hit, not avoided by tiles."""


@dataclass(frozen=True)
class Measured:
    """One workload that went to its end."""

    seconds: float
    """Of one prediction or step of the batch, or a pair of the dataset."""
    figures: dict[str, float] | None = None
    """Errors, on a dataset."""


@dataclass(frozen=True)
class Workload:
    """Something to run, on a network that is loaded."""

    device: torch.device
    trace: ModuleTrace
    run: Callable[[], Measured]


def is_bfloat16(device: Device, precision: Precision) -> bool:
    """Whether convolutions are computed in bfloat16, as the matcher chooses."""
    return precision != "exact" and has_fast_bfloat16(choose_device(device))


def prediction(
    network: PSMNet, shape: tuple[int, int, int], device: Device, precision: Precision, repeats: int
) -> Workload:
    """Predictions of a random batch, prepared as the matcher does; the first is not timed.

    Args:
        network: in float32 on the CPU.
        shape: batch, height and width.
        device: where to compute.
        precision: of the convolutions.
        repeats: how many are timed; their median counts.
    """
    matcher = StereoMatcher(network, device=device, precision=precision, memory=_WHOLE)
    images = _random_images(shape, matcher.device)
    autocast = _autocast(matcher.device, is_bfloat16(device, precision))

    def predict() -> None:
        with torch.inference_mode(), autocast:
            matcher.model(*images)

    trace = ModuleTrace(matcher.model)
    return Workload(matcher.device, trace, lambda: _timed(predict, repeats, matcher.device))


def training_step(
    network: PSMNet, shape: tuple[int, int, int], device: Device, precision: Precision, repeats: int
) -> Workload:
    """Steps of Adam on a random batch, whose truth is a plane; arguments as of `prediction`.

    The first step, which makes the optimiser's moments, is not timed but counts for the peak.
    """
    chosen = torch.device(choose_device(device))
    to_channels_last(network)
    network.train().to(chosen)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    images = _random_images(shape, chosen)
    limit = network.config.max_disparity
    truth = torch.full(shape, limit / 2, device=chosen)
    valid = torch.ones(shape, dtype=torch.bool, device=chosen)
    autocast = _autocast(chosen, is_bfloat16(device, precision))
    trace = ModuleTrace(network)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            outputs = network(*images).disparities
        stereo_loss([output.float() for output in outputs], truth, valid, limit).backward()
        trace.clear()
        optimizer.step()

    return Workload(chosen, trace, lambda: _timed(step, repeats, chosen))


def on_dataset(
    network: PSMNet,
    dataset: Sequence[StereoSample],
    device: Device,
    precision: Precision,
    label: str,
) -> Workload:
    """Prediction of every pair of a dataset, one by one, with errors."""
    matcher = StereoMatcher(network, device=device, precision=precision, memory=_WHOLE)

    def run() -> Measured:
        evaluation = evaluate(matcher, dataset, label)
        seconds = [image.seconds for image in evaluation.images]
        return Measured(sum(seconds) / len(seconds), evaluation.total.figures())

    return Workload(matcher.device, ModuleTrace(matcher.model), run)


def _random_images(shape: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Two views (B, 3, H, W) of noise: memory and time do not depend on what they show."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(batch, 3, height, width, generator=generator).to(device) for _ in range(2)]


def _autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def _timed(work: Callable[[], None], repeats: int, device: torch.device) -> Measured:
    """The median time of some runs after one that is not timed."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Measured(median(seconds[1:]))
