"""Efficient attention's published order against its exact fast form: time and memory, one run.

`python -m ea_psmnet.reports.attention_benchmark OUT` measures every case in processes of its own,
the two forms in turn, and writes OUT.json and OUT.md. Run nothing beside it.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.files import write_json, write_text
from ea_psmnet.machine import keep_freed_memory
from ea_psmnet.reports.memory import held_bytes, peak_bytes, reset_peak
from ea_psmnet.reports.tables import format_bytes, markdown_table

__all__ = ["Case", "Floor", "Measurement", "measure"]

_VOLUMES = ((32, (48, 136, 240)), (64, (24, 68, 120)))
"""Channels and size of the 1/4 and the 1/8 volume of a 544 x 960 pair at 192 disparities."""
_KEY_CHANNELS = (16, 32, 64)
_REPETITIONS = 3


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    channels: int
    size: tuple[int, int, int]
    key_channels: int
    backward: bool
    keep_memory: bool
    """Whether the C allocator keeps freed memory, as the program's commands ask of it."""
    published: bool = False


@dataclass(frozen=True)
class Measurement:
    """What it took."""

    seconds: float
    """Median of the repetitions."""
    peak: int
    """Bytes above what module, input and arriving gradient hold."""


@dataclass(frozen=True)
class Floor:
    """What the machine can do, measured in the same run."""

    bytes_per_second: float
    """Read and written, of copying a tensor as large as the input."""
    operations_per_second: float
    """Multiplies and adds of a float32 matrix product."""

    def seconds(self, case: Case) -> float:
        """No form can be faster: the larger of traffic and arithmetic.

        Forward reads x twice and writes once, with 4 C d_k multiply-adds a position; backward reads
        x twice more and the arriving gradient, writes one, and has twice the arithmetic again.
        """
        d, height, width = case.size
        floats = case.channels * d * height * width
        tensors, passes = (7, 3) if case.backward else (3, 1)
        traffic = 4 * floats * tensors / self.bytes_per_second
        arithmetic = 8 * floats * case.key_channels * passes / self.operations_per_second
        return max(traffic, arithmetic)


def measure(case: Case) -> Measurement:
    """Run one case in this process; the first, unmeasured repetition warms up."""
    if case.keep_memory:
        keep_freed_memory()
    device = _device()
    torch.manual_seed(0)
    module = EfficientAttention(
        case.channels, key_channels=case.key_channels, published_order=case.published
    ).to(device)
    x = torch.randn(1, case.channels, *case.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_(case.backward)
    arriving = torch.randn_like(x) if case.backward else None
    step = _step(module, x, arriving)
    before = held_bytes(device)
    reset_peak(device)
    _timed(step, device)
    seconds = [_timed(step, device) for _ in range(_REPETITIONS)]
    return Measurement(statistics.median(seconds), peak_bytes(device) - before)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _step(
    module: EfficientAttention, x: torch.Tensor, arriving: torch.Tensor | None
) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return module(x)

    def forward_backward() -> object:
        return torch.autograd.grad(module(x), [x, *module.parameters()], arriving)

    return forward if arriving is None else forward_backward


def _timed(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _measure_floor() -> Floor:
    device = _device()
    source = torch.randn(32 * 48 * 136 * 240, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(2048, 2048, device=device)

    def median(step: Callable[[], object]) -> float:
        return statistics.median([_timed(step, device) for _ in range(9)])

    copy = median(lambda: target.copy_(source))
    return Floor(8 * source.numel() / copy, 2 * 2048**3 / median(lambda: matrix @ matrix))


def _in_own_process(request: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


def _measure_pair(case: Case) -> dict[str, Any]:
    """Both forms of a case, one after the other."""
    forms = {
        name: Measurement(**_in_own_process(asdict(replace(case, published=published))))
        for name, published in (("published", True), ("fast", False))
    }
    return {"case": asdict(case)} | {name: asdict(m) for name, m in forms.items()}


def _row(record: dict[str, Any], floor: Floor) -> dict[str, object]:
    case = Case(**record["case"])
    published, fast = (Measurement(**record[name]) for name in ("published", "fast"))
    return {
        "volume": f"{case.channels} x {' x '.join(map(str, case.size))}",
        "d_k": case.key_channels,
        "pass": "forward + backward" if case.backward else "forward",
        "allocator": "kept" if case.keep_memory else "default",
        "published s": round(published.seconds, 3),
        "fast s": f"{fast.seconds:.3f}",
        "floor s": f"{floor.seconds(case):.3f}",
        "times faster": published.seconds / fast.seconds,
        "published memory": format_bytes(published.peak),
        "fast memory": format_bytes(fast.peak),
        "memory ratio": fast.peak / published.peak,
    }


def _report(records: Sequence[dict[str, Any]], floor: Floor) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return (
        "# Efficient attention: published order and exact fast form\n\n"
        f"torch {torch.__version__}, {device or platform.machine()}, {torch.get_num_threads()} "
        f"threads; copy {floor.bytes_per_second / 1e9:.1f} GB/s, float32 matrix product "
        f"{floor.operations_per_second / 1e9:.0f} GFLOP/s. Batch 1, float32, channels-last; each "
        "figure in a process of its own; memory above module, input and arriving gradient.\n\n"
        + markdown_table([_row(record, floor) for record in records])
        + "\n"
    )


def _main(out: Path) -> None:
    allocators = (False,) if torch.cuda.is_available() else (False, True)
    cases = [
        Case(channels, size, keys, backward, keep)
        for (channels, size), keys, backward, keep in product(
            _VOLUMES, _KEY_CHANNELS, (False, True), allocators
        )
    ]
    floor = Floor(**_in_own_process({}))
    records = [_measure_pair(case) for case in tqdm(cases, unit="case")]
    write_json(out.with_suffix(".json"), {"floor": asdict(floor), "cases": records})
    write_text(out.with_suffix(".md"), _report(records, floor))


def _answer() -> None:
    """A child: measure the case that stands on standard input, or the machine's floor."""
    request = json.load(sys.stdin)
    result = measure(Case(**request)) if request else _measure_floor()
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _main(Path(sys.argv[1]))
    else:
        _answer()
