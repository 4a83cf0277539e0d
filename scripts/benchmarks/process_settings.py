"""Seconds a pair under settings of a process: how threads wait, and whether freed memory is kept.

    .venv/bin/python scripts/benchmarks/process_settings.py [--rounds N] [--out PATH]

Run nothing beside it. Settings count from a process's start, so that every measurement is a process
of its own: the best of its pairs. Every round takes all settings in turn; figures are medians over
rounds.
"""

from __future__ import annotations

from benchmarking import Request, ask, busy, machine, run, write_results

# isort: split
import argparse
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from ea_psmnet.tables import markdown_table

NETWORKS = ("ea-light", "ea-psmnet-small")
BUSY = 2
"""Busy processes beside the measured one."""
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SETTINGS: dict[str, tuple[dict[str, str], bool]] = {
    "as by the commands": ({}, True),
    "threads spin (GNU OpenMP's default)": (
        {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300000"},
        True,
    ),
    "threads sleep at once": ({"OMP_WAIT_POLICY": "PASSIVE"}, True),
    "freed memory not kept": ({}, False),
}
"""Environment variables, and whether freed memory is kept."""


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=Path("docs/results/process-settings"))
    arguments = parser.parse_args()
    rows = [_row(network, others, arguments.rounds) for network in NETWORKS for others in (0, BUSY)]
    text = _markdown(rows)
    write_results(arguments.out, {"machine": machine(), "rows": rows}, text)
    print(text)


def answer(request: Request, pairs: int = 4) -> Request:
    """Measure the shortest time of a pair."""
    from ea_psmnet.machine import keep_freed_memory

    if request["keep"]:
        keep_freed_memory()
    import numpy as np
    import torch

    from ea_psmnet.experiments.measure import timed
    from ea_psmnet.inference.matcher import StereoMatcher
    from ea_psmnet.models.psmnet import build_model

    torch.manual_seed(0)
    matcher = StereoMatcher(build_model(request["network"]).eval(), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (540, 960, 3), dtype=np.uint8)
    matcher(image, image)
    taken = [timed(lambda: matcher(image, image), matcher.device) for _ in range(pairs)]
    return {"seconds": min(taken)}


def _row(network: str, others: int, rounds: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = defaultdict(list)
    env = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    with busy(others):
        for number in range(rounds):
            for name, (variables, keep) in SETTINGS.items():
                found = ask(__file__, {"network": network, "keep": keep}, env | variables)
                seconds[name].append(found["seconds"])
            print(f"{network}, {others} busy: round {number + 1} of {rounds}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"network": network, "busy processes": others, **medians}


def _markdown(rows: list[dict[str, object]]) -> str:
    shown = [
        {
            key: f"{value:.2f}" if isinstance(value, float) else str(value)
            for key, value in row.items()
        }
        for row in rows
    ]
    return "\n\n".join(
        [
            "# Settings of a process",
            "Seconds for a 540 x 960 pair at 192 disparities: median over rounds of the best of "
            "four pairs in a process of its own, all settings in turn. The commands let threads "
            "spin for a moment before they sleep, and keep freed memory.",
            markdown_table(shown),
            f"{machine()}. Written by `scripts/benchmarks/process_settings.py`.\n",
        ]
    )


if __name__ == "__main__":
    run(main, answer)
