"""DOC"""

from __future__ import annotations

import math
import statistics
import time
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
from ea_psmnet.experiments.measure import held_bytes, peak_bytes, reset_peak
from ea_psmnet.experiments.own_process import in_own_process, run_or_answer
from ea_psmnet.files import write_json, write_text
from ea_psmnet.machine import device_name, keep_freed_memory
from ea_psmnet.tables import format_bytes, markdown_table

__all__ = ["Case", "Floor", "Measurement", "measure"]

_VOLUMES = ((32, (48, 136, 240)), (64, (24, 68, 120)))
"""Channels and size of the 1/4 and the 1/8 volume of a 544 x 960 pair at 192 disparities."""
_KEY_CHANNELS = (16, 32, 64)
_WARM_UP = (2, 16, 16)
"""A volume too small to show in memory; running it loads code and starts threads."""
_REPETITIONS = {"cpu": 3, "cuda": 10}
_CALLS = {"cpu": 1, "cuda": 10}
"""In a repetition."""
_HEAD_START = 10**8
"""Clock cycles, some 50 ms, that a card is kept busy for while the calls are launched."""


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    channels: int
    size: tuple[int, int, int]
    key_channels: int
    backward: bool
    keep_memory: bool
    """Whether the C allocator keeps freed memory, as the program's commands ask of it."""
    dtype: str = "float32"
    """Of the volume; weights are float32."""
    published: bool = False

    @property
    def tensor_bytes(self) -> int:
        """The volume's, and its gradient's."""
        return math.prod((self.channels, *self.size)) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Measurement:
    """What it took."""

    seconds: float
    """Median of the repetitions."""
    peak: int
    """Bytes above what module, input and arriving gradient hold.

    The output is let go before the backward: where a network keeps it, that is for the next layer.
    """


@dataclass(frozen=True)
class Floor:
    """What the machine can do, measured in the same run."""

    bytes_per_second: float
    """Read and written, of copying a tensor as large as the input."""
    operations_per_second: float
    """Multiplies and adds of a float32 matrix product; on a card, one rounded to tf32."""
    on_card: bool = False

    def traffic(self, case: Case) -> float:
        """Seconds to read x twice and write the output once.

        The backward reads x and the arriving gradient twice and writes one: the input's gradient
        at any position depends on the arriving one at all, and so cannot be begun before a pass.
        """
        return case.tensor_bytes * (8 if case.backward else 3) / self.bytes_per_second

    def arithmetic(self, case: Case) -> float:
        """Seconds of 4 C d_k multiply-adds a position, and 10 C d_k more in the backward.

        The kernels for a card recompute two more. Its matrix units take float32 as three products:
        of tf32 parts in the forward, of bfloat16 ones, twice as fast, in the backward.
        """
        forward, backward = 4.0, 12.0 if self.on_card else 10.0
        if self.on_card and case.dtype == "float32":
            forward, backward = 3 * forward, 1.5 * backward
        products = forward + backward * case.backward
        positions = math.prod(case.size)
        operations = 2 * products * positions * case.channels * case.key_channels
        return operations / self.operations_per_second


def measure(case: Case) -> Measurement:
    """Run one case in this process, after a small volume and one unmeasured repetition."""
    if case.keep_memory:
        keep_freed_memory()
    device = _device()
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _volume(case: Case, device: torch.device) -> Tensor:
    """Random, and made in place: a copy's remains would hide some of the peak."""
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
    """Of one call; the first repetition warms up."""
    repetitions, calls = _REPETITIONS[device.type], _CALLS[device.type]
    seconds = [_timed(step, device, calls) for _ in range(1 + repetitions)]
    return statistics.median(seconds[1:])


def _timed(step: Callable[[], object], device: torch.device, calls: int) -> float:
    if device.type == "cuda":
        return _timed_on_card(step, calls)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def _timed_on_card(step: Callable[[], object], calls: int) -> float:
    """By the card's own clock, with no wait for a launch in it: a network launches ahead too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_HEAD_START)
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _measure_floor() -> Floor:
    device = _device()
    on_card = device.type == "cuda"
    if on_card:
        torch.set_float32_matmul_precision("high")  # tf32, in this process only
    source = torch.randn(32 * 48 * 136 * 240, device=device)
    target = torch.empty_like(source)
    size = 8192 if on_card else 2048
    matrix = torch.randn(size, size, device=device)
    copy = _median_seconds(lambda: target.copy_(source), device)
    product = _median_seconds(lambda: matrix @ matrix, device)
    return Floor(8 * source.numel() / copy, 2 * size**3 / product, on_card)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    return in_own_process("attention_benchmark", request)


def _measure_pair(case: Case) -> dict[str, Any]:
    """Both forms of a case, one after the other."""
    forms = {
        name: Measurement(**_ask(asdict(replace(case, published=published))))
        for name, published in (("published", True), ("fast", False))
    }
    return {"case": asdict(case)} | {name: asdict(m) for name, m in forms.items()}


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
Batch 1, channels-last as the network has its volumes, weights in float32; each figure in a process
of its own, the two forms in turn.

- **memory** is the peak above module, input and arriving gradient, for both forms alike: the code
  is loaded and the threads are started before, and the output is let go before the backward, as
  nothing in the module needs it. Its floor is one tensor of the input's size: the output in
  forward, the input's gradient in forward + backward.
- **traffic** is the time of the unavoidable traffic at the bandwidth of a copy in this run: x read
  twice and written once in forward; in backward x and the arriving gradient read twice, for the
  contexts' gradient is a sum over all positions, and the input's written. A cache that holds part
  of the volume from one pass to the next can undercut it.
- **arithmetic** is the time of the products that the fast form computes, at the rate of a matrix
  product in this run; exponentials come on top. On a CPU 4 C d_k multiply-adds a position in
  forward and 10 more in backward, in float32; on a card 4 and 12 at the rate of tf32, three times
  in forward and one and a half times in backward for a float32 volume, whose products are three.
- On a card times are by its own clock, of calls that are launched while it is busy.
- **kept**: the C allocator keeps freed memory, as the program's commands ask of it.
"""


def _report(records: Sequence[dict[str, Any]], floor: Floor, machine: str) -> str:
    return (
        "# Efficient attention: published order and exact fast form\n\n"
        f"torch {torch.__version__}, {machine}; copy {floor.bytes_per_second / 1e9:.1f} GB/s, "
        f"{'tf32' if floor.on_card else 'float32'} matrix product "
        f"{floor.operations_per_second / 1e9:.0f} GFLOP/s.\n"
        f"{_READING}\n{markdown_table([_row(record, floor) for record in records])}\n"
    )


def _cases(device: torch.device) -> list[Case]:
    """On a card the C allocator has no part, and half precision has."""
    on_card = device.type == "cuda"
    return [
        Case(channels, size, keys, backward, keep, dtype)
        for (channels, size), keys, backward, keep, dtype in product(
            _VOLUMES,
            _KEY_CHANNELS,
            (False, True),
            (False,) if on_card else (False, True),
            ("float32", "bfloat16") if on_card else ("float32",),
        )
    ]


def main(out: tyro.conf.Positional[Path]) -> None:
    """Measure, and write OUT.json and OUT.md.

    Args:
        out: of the files to write, without their endings.
    """
    device = _device()
    floor = Floor(**_ask({}))
    records = [_measure_pair(case) for case in tqdm(_cases(device), unit="case")]
    write_json(out.with_suffix(".json"), {"floor": asdict(floor), "cases": records})
    write_text(out.with_suffix(".md"), _report(records, floor, device_name(device)))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """A child: measure a case, or the machine's floor."""
    return asdict(measure(Case(**request)) if request else _measure_floor())


if __name__ == "__main__":
    run_or_answer(lambda: tyro.cli(main), _answer)
