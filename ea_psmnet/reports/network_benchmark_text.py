"""The network benchmark as Markdown."""

from __future__ import annotations

from ea_psmnet.reports.network_cases import STEPS
from ea_psmnet.reports.network_results import NetworkResults, Record
from ea_psmnet.tables import format_bytes, markdown_table

__all__ = ["benchmark_markdown"]

_READING = """\
Each case runs in processes of its own, after a small pair that loads code and starts threads; all
cases one after the other, and so several times over: medians, and the best and worst round. In a
round what takes less than two seconds runs up to five times; what takes over half a minute is
measured in the first round alone. Inputs and weights are random, but for accuracy.

- **form**: `plain` is the published one (eager float32, contiguous, volume filled by a loop, one
  image after the other, head on the full volume); `exact` the rearranged one in float32; `fast`
  the same in bfloat16 (in training autocast).
- **allocator**: `kept` is glibc told to keep freed memory, as the program's commands do.
- **peak** is above the loaded network and its inputs; that of a step above what was held when it
  began, so that steps compare alone.
- **arithmetic** is the published multiply-adds (twice that for a backward) at the better rate of a
  matrix product and a 3 x 3 x 3 convolution in this run; a form that multiplies less can be
  faster. **traffic** is writing and reading ten volumes of the aggregation at a copy's bandwidth.
"""


def benchmark_markdown(results: NetworkResults, name: str) -> str:
    """The whole report; `name` is that of its files, without endings."""
    parts = ["# The network: published form and fast forms", _machine(results), _READING]
    if results.targets():
        parts += ["## Targets", _targets(results), f"{results.verdict()}."]
    inference = [r for r in results.records if not r.case.training]
    training = [r for r in results.records if r.case.training]
    if inference:
        parts += ["## Inference", markdown_table([_row(results, r) for r in inference])]
    if by_layer := [r for r in inference if r.measured.layers]:
        parts += ["### Steps", markdown_table([_steps(r) for r in by_layer])]
        parts += [f"![where time goes]({name}-layers.png)", f"![growth]({name}-growth.png)"]
    if training:
        parts += ["## Training step", markdown_table([_row(results, r) for r in training])]
    if results.accuracy:
        parts += ["## Accuracy, px", _accuracy(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(results: NetworkResults) -> str:
    floor = results.floor
    rates = ", ".join(
        f"{kind} {name} {rate / 1e9:.0f} GFLOP/s"
        for kind, by_type in (("matrix product", floor.matmul), ("convolution", floor.conv3d))
        for name, rate in by_type.items()
    )
    return (
        f"{results.machine}; medians of {results.rounds}{_sittings(results)}; copy "
        f"{floor.bytes_per_second / 1e9:.1f} GB/s, {rates}."
    )


def _sittings(results: NetworkResults) -> str:
    return f", measured in {results.sittings} sittings" if results.sittings > 1 else ""


def _targets(results: NetworkResults) -> str:
    rows = [
        {
            "target": target.name,
            "wanted": f"{'>=' if target.at_least else '<='} {target.wanted:.3g}",
            "found": f"{target.found:.3g}",
            "met": "met" if target.met else "not met",
        }
        for target in results.targets()
    ]
    return markdown_table(rows)


def _what(record: Record) -> dict[str, object]:
    case = record.case
    return {
        "network": case.network,
        "size": f"{case.size[0]} x {case.size[1]}",
        "D": case.max_disparity,
        "batch": case.batch,
        "form": case.form,
        "allocator": "kept" if case.keep_memory else "default",
    }


def _row(results: NetworkResults, record: Record) -> dict[str, object]:
    case, measured = record.case, record.measured
    return _what(record) | {
        "s": f"{measured.seconds:.3g}",
        "rounds": f"{record.fastest:.3g} to {record.slowest:.3g}",
        "s a sample": f"{measured.seconds / case.batch:.3g}",
        "times faster": results.faster(case),
        "than plain kept": results.faster(case, keep_memory=True),
        "arithmetic s": f"{results.floor.arithmetic(case):.3g}",
        "traffic s": f"{results.floor.traffic(case):.3g}",
        "peak": format_bytes(measured.peak),
        "of plain": results.lighter(case),
    }


def _steps(record: Record) -> dict[str, object]:
    layers, peaks = record.measured.layers, record.measured.peaks
    seconds = {
        f"{step} s": f"{sum(v for n, v in layers.items() if n.startswith(f'{step}/')):.3g}"
        for step in STEPS
    }
    memory = {f"{step} peak": format_bytes(peaks.get(step, 0)) for step in STEPS}
    return _what(record) | seconds | memory


def _accuracy(results: NetworkResults) -> str:
    rows = [
        {
            "pair": one.name,
            "exact, largest change": f"{one.exact_max:.2g}",
            "fast, mean change": f"{one.fast_mean:.2g}",
            "EPE plain": f"{one.epe_plain:.4f}",
            "EPE exact": f"{one.epe_exact:.4f}",
            "EPE fast": f"{one.epe_fast:.4f}",
        }
        for one in results.accuracy
    ]
    return markdown_table(rows)
