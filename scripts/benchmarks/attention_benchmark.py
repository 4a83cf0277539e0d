"""The published order of efficient attention beside its exact fast form: time and memory.

    .venv/bin/python scripts/benchmarks/attention_benchmark.py [OUT] [--help]

Every case runs in processes of its own, the two forms in turn. Writes OUT.json and OUT.md; started
again after it was stopped, it goes on. Run nothing beside it. Measures on a GPU where there is one,
in float32 and bfloat16.
"""

from __future__ import annotations

from benchmarking import Answers, Request, ask, code_hash, run, told_sittings, write_results

# isort: split

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.experiments.measure import median_seconds
from ea_psmnet.machine import (
    choose_device,
    device_name,
    held_bytes,
    keep_freed_memory,
    peak_bytes,
    reset_peak,
)
from ea_psmnet.tables import format_bytes, markdown_table

_VOLUMES = ((32, (48, 136, 240)), (64, (24, 68, 120)))
"""Channels and size of the 1/4 and the 1/8 volume of a 544 x 960 pair at 192 disparities."""
_KEY_CHANNELS = (16, 32, 64)
_WARM_UP = (2, 16, 16)
"""Size of a volume that loads code and starts threads, too small for its memory to matter."""
_REPETITIONS = {"cpu": 3, "cuda": 10}
_CALLS = 10
"""Calls in a repetition on a GPU."""
_HEAD_START = 10**8
"""Clock cycles, about 50 ms, for which a GPU is kept busy while the calls are launched."""


@dataclass(frozen=True)
class Case:
    """A volume, a module and a pass to measure."""

    channels: int
    size: tuple[int, int, int]
    key_channels: int
    backward: bool
    keep_memory: bool
    """Whether the C allocator is told to keep freed memory, as by all commands."""
    dtype: str = "float32"
    """Type of the volume; weights are float32."""
    published: bool = False

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the volume; its gradient has as many."""
        return math.prod((self.channels, *self.size)) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Measurement:
    """Time and memory of a case."""

    seconds: float
    """Median of the repetitions."""
    peak: int
    """Peak bytes in addition to module, input and the output's gradient.

    The output is freed before the backward pass; in a network it is kept for the next layer.
    """


@dataclass(frozen=True)
class Floor:
    """Rates of the machine, measured in the same run."""

    bytes_per_second: float
    """Bytes read and written per second by a copy of a tensor as large as the input."""
    operations_per_second: float
    """Multiplications and additions per second of a float32 matrix product; on a GPU of tf32."""
    on_gpu: bool = False

    def traffic(self, case: Case) -> float:
        """Seconds to read x twice and write the output once.

        The backward pass reads x and the output's gradient twice and writes the input's: this
        depends at every position on the whole gradient of the output.
        """
        return case.tensor_bytes * (8 if case.backward else 3) / self.bytes_per_second

    def arithmetic(self, case: Case) -> float:
        """Seconds of 4 C d_k multiply-adds per position, and 10 C d_k more in the backward pass.

        The kernels for GPUs recompute two more. Matrix units compute float32 as three products: of
        tf32 in the forward pass, of bfloat16, which is twice as fast, in the backward pass.
        """
        forward, backward = 4.0, 12.0 if self.on_gpu else 10.0
        if self.on_gpu and case.dtype == "float32":
            forward, backward = 3 * forward, 1.5 * backward
        products = forward + backward * case.backward
        positions = math.prod(case.size)
        operations = 2 * products * positions * case.channels * case.key_channels
        return operations / self.operations_per_second


def measure(case: Case) -> Measurement:
    """Measure a case in this process, after a small volume and a repetition that is not counted."""
    if case.keep_memory:
        keep_freed_memory()
    device = torch.device(choose_device("auto"))
    torch.manual_seed(0)
    module = EfficientAttention(
        case.channels, key_channels=case.key_channels, published_order=case.published
    ).to(device)
    _step(module, replace(case, size=_WARM_UP), device)()
    step = _step(module, case, device)
    before = held_bytes(device)
    reset_peak(device)
    seconds = _median_seconds(step, device)
    return Measurement(seconds, peak_bytes(device) - before)


def _volume(case: Case, device: torch.device) -> Tensor:
    """Make a random volume in place: the remains of a copy would hide some of the peak."""
    layout = torch.channels_last_3d
    size, dtype = (1, case.channels, *case.size), getattr(torch, case.dtype)
    return torch.empty(size, dtype=dtype, device=device, memory_format=layout).normal_()


def _step(module: EfficientAttention, case: Case, device: torch.device) -> Callable[[], object]:
    x = _volume(case, device).requires_grad_(case.backward)
    arriving = _volume(case, device) if case.backward else None

    def forward() -> object:
        with torch.no_grad():
            return module(x)

    def forward_backward() -> object:
        end = torch.autograd.graph.get_gradient_edge(module(x))  # holds no output
        return torch.autograd.grad(end, [x, *module.parameters()], arriving)

    return forward_backward if case.backward else forward


def _median_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, after one repetition that is not counted."""
    if device.type == "cpu":
        return median_seconds(step, device, _REPETITIONS["cpu"])
    return statistics.median([_timed_on_gpu(step) for _ in range(1 + _REPETITIONS["cuda"])][1:])


def _timed_on_gpu(step: Callable[[], object]) -> float:
    """Time calls by the GPU's clock, without waits for a launch: a network launches ahead, too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START)
    start.record()
    for _ in range(_CALLS):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / _CALLS


def _measure_floor() -> Floor:
    device = torch.device(choose_device("auto"))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # tf32, in this process only
    source = torch.randn(32 * 48 * 136 * 240, device=device)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 2048
    matrix = torch.randn(size, size, device=device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    product = _median_seconds(lambda: matrix @ matrix, device)
    return Floor(8 * source.numel() / copy, 2 * size**3 / product, on_gpu)


def measured(request: Request) -> Request:
    """Let a fresh process measure."""
    return ask(__file__, request)


def _measure_pair(case: Case, answers: Answers) -> dict[str, Any]:
    """Measure both forms of a case, one after the other."""
    record: dict[str, Any] = {"case": asdict(case)}
    for name, published in (("published", True), ("fast", False)):
        request = asdict(replace(case, published=published))
        record[name] = asdict(answers.answer(request, 0, measured, Measurement))
    return record


def _row(record: dict[str, Any], floor: Floor) -> dict[str, object]:
    case = Case(**record["case"])
    published, fast = (Measurement(**record[name]) for name in ("published", "fast"))
    return {
        "volume": f"{case.channels} x {' x '.join(map(str, case.size))}",
        "d_k": case.key_channels,
        "type": case.dtype,
        "pass": "forward + backward" if case.backward else "forward",
        "allocator": "kept" if case.keep_memory else "default",
        "published ms": f"{1e3 * published.seconds:.1f}",
        "fast ms": f"{1e3 * fast.seconds:.1f}",
        "times faster": published.seconds / fast.seconds,
        "traffic ms": f"{1e3 * floor.traffic(case):.1f}",
        "fast / traffic": fast.seconds / floor.traffic(case),
        "arithmetic ms": f"{1e3 * floor.arithmetic(case):.1f}",
        "published memory": format_bytes(published.peak),
        "fast memory": format_bytes(fast.peak),
        "memory ratio": fast.peak / published.peak,
        "memory floor": format_bytes(case.tensor_bytes),
    }


_READING = """\
Batch 1, channels-last as in the network, weights in float32; every figure is measured in a process
of its own, the two forms in turn.

- **memory** is the peak in addition to module, input and the output's gradient. Code is loaded and
  threads are started before; the output is freed before the backward pass, as nothing in the module
  needs it. Its floor is one tensor of the input's size: the output in forward, the input's gradient
  in forward + backward.
- **traffic** is the time of the unavoidable traffic at the bandwidth of a copy in this run. In
  forward x is read twice and the output written once; in backward x and the output's gradient are
  read twice, as the contexts' gradient is a sum over all positions, and the input's gradient is
  written. A cache that holds part of the volume between passes can make it faster.
- **arithmetic** is the time of the products of the fast form at the rate of a matrix product in
  this run, without exponentials. On a CPU these are 4 C d_k multiply-adds per position in forward
  and 10 more in backward, in float32; on a GPU 4 and 12 at the rate of tf32, times three in forward
  and one and a half in backward for a float32 volume, whose products are three.
- On a GPU, times are by its own clock, of calls that are launched while it is busy.
- **kept**: the C allocator is told to keep freed memory, as by all commands.
"""


def _report(records: Sequence[dict[str, Any]], floor: Floor, machine: str) -> str:
    return (
        "# Efficient attention: published order and exact fast form\n\n"
        f"{machine}; copy {floor.bytes_per_second / 1e9:.1f} GB/s, "
        f"{'tf32' if floor.on_gpu else 'float32'} matrix product "
        f"{floor.operations_per_second / 1e9:.0f} GFLOP/s.\n"
        f"{_READING}\n{markdown_table([_row(record, floor) for record in records])}\n"
    )


def _cases(device: torch.device) -> list[Case]:
    """Return all cases: with both allocators on a CPU, with both types on a GPU."""
    on_gpu = device.type == "cuda"
    return [
        Case(channels, size, keys, backward, keep, dtype)
        for (channels, size), keys, backward, keep, dtype in product(
            _VOLUMES,
            _KEY_CHANNELS,
            (False, True),
            (False,) if on_gpu else (False, True),
            ("float32", "bfloat16") if on_gpu else ("float32",),
        )
    ]


def main(out: tyro.conf.Positional[Path] = Path("docs/results/attention-benchmark")) -> None:
    """Measure, and write OUT.json and OUT.md.

    Args:
        out: Path of the files to write, without endings.
    """
    device = torch.device(choose_device("auto"))
    machine = f"torch {torch.__version__}, {device_name(device)}"
    answers = Answers(out.with_suffix(".unfinished"), {"machine": machine, "code": code_hash()})
    floor = answers.answer({}, 0, measured, Floor)
    records = [_measure_pair(case, answers) for case in tqdm(_cases(device), unit="case")]
    text = _report(records, floor, machine + told_sittings(answers.sittings))
    write_results(out, {"floor": asdict(floor), "cases": records}, text)
    answers.clear()


def answer(request: Request) -> Request:
    """Measure a case, or the machine, in this process."""
    return asdict(measure(Case(**request)) if request else _measure_floor())


if __name__ == "__main__":
    run(lambda: tyro.cli(main), answer)
