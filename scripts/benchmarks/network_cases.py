"""Measurements of a network in several forms, of their accuracy, and of the machine."""

from __future__ import annotations

import benchmarking  # noqa: F401  before torch

# isort: split

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.experiments.measure import median_seconds, synchronize, timed
from ea_psmnet.experiments.networks import forecast
from ea_psmnet.experiments.trial import TrainingSteps
from ea_psmnet.machine import choose_device, held_bytes, keep_freed_memory, peak_bytes, reset_peak
from ea_psmnet.models.config import preset
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PlainPSMNet, PSMNet, build_model
from ea_psmnet.models.weights import load_model
from ea_psmnet.sample import StereoSample

Form = Literal["plain", "exact", "fast"]
"""As published; rearranged in float32; rearranged in bfloat16."""

_WARM_UP = (16, 32)
"""Size of a pair that loads code and starts threads, too small for its memory to matter."""

STEPS = ("features", "volume", "aggregation", "head")
"""Steps of a forward pass; `volume` is the cost volume and the first convolution on it."""


@dataclass(frozen=True)
class NetworkCase:
    """A network, its form, and its input."""

    form: Form
    size: tuple[int, int]
    """Height and width of the images."""
    max_disparity: int = 192
    network: str = "psmnet"
    """Preset of the network."""
    batch: int = 1
    training: bool = False
    keep_memory: bool = True
    """Whether the C library is told to keep freed memory, as by all commands."""

    @property
    def half(self) -> bool:
        """Whether convolutions are computed in bfloat16."""
        return self.form == "fast"


@dataclass(frozen=True)
class NetworkMeasurement:
    """Time and memory of a case."""

    seconds: float
    """Seconds of one forward pass of the batch, or of one training step."""
    peak: int
    """Peak bytes in addition to the loaded network and its inputs."""
    layers: dict[str, float] = field(default_factory=dict)
    """Seconds by `step/layer` of the forward pass; empty for training."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Peak bytes by step, in addition to what was held when the step began."""


def measure_network(case: NetworkCase) -> NetworkMeasurement:
    """Measure in this process: one run to warm up, others for memory and time."""
    if case.keep_memory:
        keep_freed_memory()
    device = torch.device(choose_device("auto"))
    torch.manual_seed(0)
    network = _network(case, device)
    _run(network, replace(case, size=_WARM_UP, batch=2), device)()
    run = _run(network, case, device)
    if case.training:
        return NetworkMeasurement(peak=_peak(run, device), seconds=_seconds(run, device))
    # First, before freed memory that is kept hides what a step takes.
    with LayerClock(network, _Peaks(device)) as memory:
        peak = _highest(run, memory)
    seconds = _seconds(run, device)
    with LayerClock(network, _Seconds(device)) as clock:
        run()
    peaks = {step: int(_of_step(memory.figures, step, max)) for step in STEPS}
    return NetworkMeasurement(seconds, peak, clock.figures, peaks)


def _peak(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of a run in addition to what was held before."""
    before = held_bytes(device)
    reset_peak(device)
    run()
    synchronize(device)
    return peak_bytes(device) - before


def _highest(run: Callable[[], object], memory: LayerClock) -> int:
    """As `_peak`, of a run whose layers are measured, which resets the peak."""
    assert isinstance(memory.meter, _Peaks)
    before = held_bytes(memory.meter.device)
    run()
    return memory.meter.highest - before


def _of_step(
    figures: dict[str, float], step: str, put_together: Callable[[list[float]], float]
) -> float:
    return put_together([v for name, v in figures.items() if name.startswith(f"{step}/")] or [0.0])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median of as many runs as fit into two seconds: one to five."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 2):
        times.append(timed(run, device))
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
    if case.training:
        dtype = torch.bfloat16 if case.half else torch.float32
        return TrainingSteps(network, (case.batch, *case.size), device, dtype)
    shape = (case.batch, 3, *case.size)
    left, right = (torch.rand(shape, device=device) for _ in range(2))

    def forward() -> object:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, case.half):
            return network(left, right)

    return forward


# Layers -------------------------------------------------------------------------------------------


class _Seconds:
    """Measures the time since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = math.nan

    def begin(self) -> None:
        """Begin to measure."""
        synchronize(self.device)
        self._last = time.perf_counter()

    def look(self) -> float:
        """Return the seconds since the last reading, and begin again."""
        before = self._last
        self.begin()
        return self._last - before


class _Peaks:
    """Measures the peak of memory since the last reading, in addition to what was held then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest = 0
        """Most bytes held so far."""
        self._held = 0

    def begin(self) -> None:
        """Begin to measure."""
        synchronize(self.device)
        reset_peak(self.device)
        self._held = held_bytes(self.device)

    def look(self) -> float:
        """Return the bytes taken since the last reading, and begin again."""
        synchronize(self.device)
        peak = peak_bytes(self.device)
        self.highest = max(self.highest, peak)
        taken = peak - self._held
        self.begin()
        return taken


class LayerClock:
    """Measures the layers of a forward pass, by hooks at their ends.

    Work between modules, such as filling the volume or the head, counts for the module that ends
    next.
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
    """Yield the modules to measure as `step/layer`."""
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


# What the machine can do --------------------------------------------------------------------------

_REPEATS = 5
_MATRIX, _VOLUME = 2048, (1, 32, 48, 64, 128)


@dataclass(frozen=True)
class NetworkFloor:
    """Rates of the machine, measured in the same run."""

    bytes_per_second: float
    """Bytes read and written per second by a copy."""
    matmul: dict[str, float]
    """Multiplications and additions per second of a matrix product, by type."""
    conv3d: dict[str, float]
    """The same for a 3 x 3 x 3 convolution of 32 channels, channels-last."""

    def arithmetic(self, case: NetworkCase) -> float:
        """Seconds of the published convolutions at the better rate; a backward counts twice."""
        dtype = "bfloat16" if case.half else "float32"
        config = replace(preset(case.network), max_disparity=case.max_disparity)
        shape = (case.batch, *case.size)
        operations = forecast(config, shape, training=case.training).operations
        return (
            operations * (3 if case.training else 1) / max(self.matmul[dtype], self.conv3d[dtype])
        )

    def traffic(self, case: NetworkCase) -> float:
        """Seconds to write and read the aggregation's ten volumes at a quarter of the image size.

        No fusion avoids these: the output of each convolution at that resolution, and the inputs of
        the three hourglasses once more.
        """
        width = preset(case.network).width
        cells = case.batch * case.max_disparity * case.size[0] * case.size[1] / 64
        item = 2 if case.half else 4
        volumes = 10 * (3 if case.training else 1)
        return 2 * volumes * cells * 32 * width * item / self.bytes_per_second


def measure_floor() -> NetworkFloor:
    """Measure the machine in this process."""
    device = torch.device(choose_device("auto"))
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, _REPEATS)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return NetworkFloor(
        2 * 4 * source.numel() / copy,
        {name: _matmul_rate(dtype, device) for name, dtype in dtypes.items()},
        {name: _conv_rate(dtype, device) for name, dtype in dtypes.items()},
    )


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.randn(_MATRIX, _MATRIX, device=device).to(dtype)
    return 2 * _MATRIX**3 / median_seconds(lambda: matrix @ matrix, device, _REPEATS)


def _conv_rate(dtype: torch.dtype, device: torch.device) -> float:
    layout = torch.channels_last_3d
    volume = torch.randn(_VOLUME, device=device).to(dtype, memory_format=layout)
    weight = torch.randn(32, 32, 3, 3, 3, device=device).to(dtype, memory_format=layout)
    seconds = median_seconds(lambda: F.conv3d(volume, weight, padding=1), device, _REPEATS)
    return 2 * volume.numel() * 32 * 27 / seconds


# Accuracy -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Differences of the forms on one pair, in pixels; EPE over valid pixels in the range."""

    name: str
    exact_max: float
    """Largest difference between the rearranged and the published form in float32."""
    fast_mean: float
    """Mean difference of the form in bfloat16."""
    epe_plain: float
    epe_exact: float
    epe_fast: float


def measure_accuracy(checkpoint: Path, pairs: Path | None) -> list[Accuracy]:
    """Compare the forms on pairs `NAME/left.png, right.png, disp.npy` of a folder, or on scenes.

    Args:
        checkpoint: Trained weights.
        pairs: Folder of pairs; None for scenes that are rendered here.

    Raises:
        FileNotFoundError: There is no such checkpoint, or there are no pairs in the folder.
    """
    model = load_model(checkpoint).eval().to(choose_device("auto"))
    networks = (
        PlainPSMNet(model),
        arrange_for_inference(model),
        arrange_for_inference(model, torch.bfloat16),
    )
    samples: Sequence[StereoSample] = (
        SyntheticScenes(split="test", size=(256, 512), count=3)
        if pairs is None
        else build_dataset("folder", pairs, split="test")
    )
    return [_compare(samples[index], networks) for index in range(len(samples))]


def _compare(sample: StereoSample, networks: tuple[PSMNet, ...]) -> Accuracy:
    height, width = (side // SIZE_MULTIPLE * SIZE_MULTIPLE for side in sample.disparity.shape)
    window = np.s_[:height, :width]
    views = (sample.left, sample.right)
    images = [_tensor(view[window]).to(networks[0].mean.device) for view in views]
    plain, exact, fast = (
        _predict(network, images, fast=index == 2) for index, network in enumerate(networks)
    )
    ground_truth = sample.disparity[window]
    known = sample.valid[window] & (ground_truth > 0)
    known &= ground_truth < networks[0].config.max_disparity
    epes = (float(np.abs(p - ground_truth)[known].mean()) for p in (plain, exact, fast))
    differences = float(np.abs(exact - plain).max()), float(np.abs(fast - plain).mean())
    return Accuracy(sample.name, *differences, *epes)


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def _predict(network: PSMNet, images: list[Tensor], *, fast: bool) -> NDArray[np.float32]:
    kind = images[0].device.type
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=fast):
        return network(*images).disparity[0].float().cpu().numpy()
