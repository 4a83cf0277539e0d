"""What the machine can do, measured, and the least time that a network's arithmetic takes then."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from ea_psmnet.models.config import preset
from ea_psmnet.reports.forecast import forecast
from ea_psmnet.reports.network_cases import NetworkCase, device_of_choice, finish

__all__ = ["NetworkFloor", "measure_floor"]

_REPEATS = 5
_MATRIX, _VOLUME = 2048, (1, 32, 48, 64, 128)


@dataclass(frozen=True)
class NetworkFloor:
    """Rates of this run."""

    bytes_per_second: float
    """Read and written, of a copy."""
    matmul: dict[str, float]
    """Multiplies and adds a second of a matrix product, by type."""
    conv3d: dict[str, float]
    """The same of a 3 x 3 x 3 convolution of 32 channels, channels-last."""

    def arithmetic(self, case: NetworkCase) -> float:
        """Seconds of the published convolutions at the better rate; a backward is two forwards."""
        dtype = "bfloat16" if case.half else "float32"
        config = replace(preset(case.network), max_disparity=case.max_disparity)
        shape = (case.batch, *case.size)
        operations = forecast(config, shape, training=case.training).operations
        return (
            operations * (3 if case.training else 1) / max(self.matmul[dtype], self.conv3d[dtype])
        )

    def traffic(self, case: NetworkCase) -> float:
        """Seconds to write the aggregation's ten volumes at a quarter of the image and read them.

        Those that no fusion spares: one behind each convolution at that resolution, and the three
        hourglasses' inputs once more.
        """
        width = preset(case.network).width
        cells = case.batch * case.max_disparity * case.size[0] * case.size[1] / 64
        item = 2 if case.half else 4
        volumes = 10 * (3 if case.training else 1)
        return 2 * volumes * cells * 32 * width * item / self.bytes_per_second


def measure_floor() -> NetworkFloor:
    """Measure in this process."""
    device = device_of_choice()
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source), device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return NetworkFloor(
        2 * 4 * source.numel() / copy,
        {name: _matmul_rate(dtype, device) for name, dtype in dtypes.items()},
        {name: _conv_rate(dtype, device) for name, dtype in dtypes.items()},
    )


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.randn(_MATRIX, _MATRIX, device=device).to(dtype)
    return 2 * _MATRIX**3 / _median(lambda: matrix @ matrix, device)


def _conv_rate(dtype: torch.dtype, device: torch.device) -> float:
    layout = torch.channels_last_3d
    volume = torch.randn(_VOLUME, device=device).to(dtype, memory_format=layout)
    weight = torch.randn(32, 32, 3, 3, 3, device=device).to(dtype, memory_format=layout)
    seconds = _median(lambda: F.conv3d(volume, weight, padding=1), device)
    return 2 * volume.numel() * 32 * 27 / seconds


def _median(call: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(1 + _REPEATS):
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
