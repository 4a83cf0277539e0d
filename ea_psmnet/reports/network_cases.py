"""One measurement of a whole network: a forward, or a training step, in a form and a size."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ea_psmnet.losses import stereo_loss
from ea_psmnet.machine import keep_freed_memory
from ea_psmnet.models.config import preset
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PlainPSMNet, PSMNet, build_model
from ea_psmnet.reports.memory import held_bytes, peak_bytes, reset_peak

__all__ = ["STEPS", "Form", "LayerClock", "NetworkCase", "NetworkMeasurement", "measure_network"]

Form = Literal["plain", "exact", "fast"]
"""As published; rearranged in float32; rearranged in bfloat16."""

_WARM_UP = (16, 32)
"""A pair that loads code and starts threads, too small for its memory to show."""

STEPS = ("features", "volume", "aggregation", "head")
"""Of a forward: `volume` is the cost volume and the first convolution over it."""


@dataclass(frozen=True)
class NetworkCase:
    """What to measure."""

    form: Form
    size: tuple[int, int]
    """Height and width of the images."""
    max_disparity: int = 192
    network: str = "psmnet"
    """A preset."""
    batch: int = 1
    training: bool = False
    keep_memory: bool = True
    """Whether the C library keeps freed memory, as the program's commands ask of it."""

    @property
    def half(self) -> bool:
        """Whether convolutions are in bfloat16."""
        return self.form == "fast"


@dataclass(frozen=True)
class NetworkMeasurement:
    """What it took."""

    seconds: float
    """Of one forward of the batch, or of one training step."""
    peak: int
    """Bytes above the loaded network and its inputs."""
    layers: dict[str, float] = field(default_factory=dict)
    """Seconds by `step/layer` of the forward; not in training."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes by step, above what was held when it began."""


def device_of_choice() -> torch.device:
    """A card where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish(device: torch.device) -> None:
    """Wait for what has been launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_network(case: NetworkCase) -> NetworkMeasurement:
    """Measure in this process: one run that warms up, one for time and one for memory."""
    if case.keep_memory:
        keep_freed_memory()
    device = device_of_choice()
    torch.manual_seed(0)
    network = _network(case, device)
    _run(network, replace(case, size=_WARM_UP, batch=2), device)()
    run = _run(network, case, device)
    if case.training:
        return NetworkMeasurement(peak=_peak(run, device), seconds=_seconds(run, device))
    # First, while freed memory that is kept does not hide what a step takes.
    with LayerClock(network, _Peaks(device)) as memory:
        peak = _highest(run, memory)
    seconds = _seconds(run, device)
    with LayerClock(network, _Seconds(device)) as clock:
        run()
    peaks = {step: int(_of_step(memory.figures, step, max)) for step in STEPS}
    return NetworkMeasurement(seconds, peak, clock.figures, peaks)


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes above what is held before."""
    before = held_bytes(device)
    reset_peak(device)
    run()
    finish(device)
    return peak_bytes(device) - before


def _highest(run: Callable[[], object], memory: LayerClock) -> int:
    """The same of a run whose layers are looked at, which resets the peak."""
    assert isinstance(memory.meter, _Peaks)
    before = held_bytes(memory.meter.device)
    run()
    return memory.meter.highest - before


def _of_step(
    figures: dict[str, float], step: str, put_together: Callable[[list[float]], float]
) -> float:
    return put_together([v for name, v in figures.items() if name.startswith(f"{step}/")] or [0.0])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of so many runs as fit into two seconds: one at least, five at most."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 2):
        finish(device)
        start = time.perf_counter()
        run()
        finish(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _network(case: NetworkCase, device: torch.device) -> PSMNet:
    config = replace(preset(case.network), max_disparity=case.max_disparity)
    built = build_model(config).to(device)
    built.train(case.training)
    if case.form == "plain":
        return PlainPSMNet(built)
    if case.training:
        to_channels_last(built)
        return built
    return arrange_for_inference(built, torch.bfloat16 if case.half else torch.float32)


def _run(network: PSMNet, case: NetworkCase, device: torch.device) -> Callable[[], object]:
    shape = (case.batch, 3, *case.size)
    left, right = (torch.rand(shape, device=device) for _ in range(2))

    @contextmanager
    def precision() -> Iterator[None]:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.half):
            yield

    def forward() -> object:
        with torch.inference_mode(), precision():
            return network(left, right)

    return _training_step(network, (left, right), case, precision) if case.training else forward


def _training_step(
    network: PSMNet,
    images: tuple[Tensor, Tensor],
    case: NetworkCase,
    precision: Callable[[], Any],
) -> Callable[[], object]:
    """Forward, loss, backward and Adam, as the training loop takes them."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    truth = torch.rand(images[0][:, 0].shape, device=images[0].device) * (case.max_disparity - 1)
    known = torch.ones_like(truth, dtype=torch.bool)

    def step() -> None:
        optimizer.zero_grad()
        with precision():
            predictions = network(*images).disparities
        stereo_loss(predictions, truth, known, case.max_disparity).backward()
        optimizer.step()

    return step


# Layers -------------------------------------------------------------------------------------------


class _Seconds:
    """Time since the last look."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = math.nan

    def begin(self) -> None:
        """Start here."""
        finish(self.device)
        self._last = time.perf_counter()

    def look(self) -> float:
        """What has passed; starts anew."""
        before = self._last
        self.begin()
        return self._last - before


class _Peaks:
    """Peak of memory since the last look, above what was held then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest = 0
        """Bytes held at the worst moment so far."""
        self._held = 0

    def begin(self) -> None:
        """Start here."""
        finish(self.device)
        reset_peak(self.device)
        self._held = held_bytes(self.device)

    def look(self) -> float:
        """What has been taken; starts anew."""
        finish(self.device)
        peak = peak_bytes(self.device)
        self.highest = max(self.highest, peak)
        taken = peak - self._held
        self.begin()
        return taken


class LayerClock:
    """Charges what happens in a forward to the layer at whose end it is looked.

    What a network does between its modules, as filling the volume or the head, goes to the module
    that ends next.
    """

    def __init__(self, network: PSMNet, meter: _Seconds | _Peaks) -> None:
        self.figures: dict[str, float] = {}
        self.meter = meter
        self._hooks = [network.register_forward_pre_hook(lambda *_: meter.begin())]
        for name, module in _layers(network):
            self._hooks.append(module.register_forward_hook(self._hook(name)))

    def __enter__(self) -> LayerClock:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        more: Callable[[float, float], float] = (
            max if isinstance(self.meter, _Peaks) else lambda a, b: a + b
        )

        def look(*_: object) -> None:
            self.figures[name] = more(self.figures.get(name, 0.0), self.meter.look())

        return look


def _layers(network: PSMNet) -> Iterator[tuple[str, nn.Module]]:
    """What is looked at, by `step/layer`."""
    features, aggregation = network.features, network.aggregation
    yield "features/stem", features.stem
    for number, stage in enumerate(features.stages, start=1):
        yield f"features/stage {number}", stage
    yield "features/pyramid", features
    yield "volume/first convolution", aggregation.stem[0]
    for residual in aggregation.residuals:
        yield "aggregation/residuals", residual
    for number, hourglass in enumerate(getattr(aggregation, "hourglasses", []), start=1):
        yield f"aggregation/hourglass {number}", hourglass
    for classifier in aggregation.classifiers:
        yield "aggregation/classifiers", classifier
    yield "aggregation/sums", aggregation
    yield "head/soft-argmin", network
