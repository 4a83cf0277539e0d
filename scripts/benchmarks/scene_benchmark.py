"""DOC"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import tyro
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.synthetic import SyntheticScenes
from ea_psmnet.console import exit_code
from ea_psmnet.files import write_json, write_text
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import markdown_table

__all__ = ["SceneRate", "measure_scenes", "scene_report"]


@dataclass(frozen=True)
class SceneRate:
    """How many scenes a second are made."""

    device: str
    workers: int
    """Processes, each with one thread; 0 renders in this one."""
    samples_per_second: float


def measure_scenes(scenes: SyntheticScenes, workers: int, warm_up: int) -> SceneRate:
    """Render all of `scenes` and time those after the first `warm_up` of them.

    Args:
        scenes: More than `warm_up`.
        workers: Processes that share the work; 0 is this one.
        warm_up: Until these are there, textures are built and queues filled.
    """
    if scenes.device == "cpu":
        scenes.prepare()  # forked workers share them
    loader: DataLoader[StereoSample] = DataLoader(
        cast("Dataset[StereoSample]", scenes),
        batch_size=None,
        num_workers=workers,
        # A process that was forked cannot use its parent's GPU.
        multiprocessing_context="spawn" if workers and scenes.device != "cpu" else None,
    )
    start = time.perf_counter()
    for done, _ in enumerate(loader, 1):
        if done == warm_up:
            start = time.perf_counter()
    rate = (len(scenes) - warm_up) / (time.perf_counter() - start)
    return SceneRate(scenes.device, workers, rate)


def scene_report(rates: list[SceneRate], size: tuple[int, int]) -> str:
    """The figures as Markdown."""
    rows = [
        {"device": r.device, "workers": r.workers, "samples/s": r.samples_per_second} for r in rates
    ]
    return (
        "# Scenes rendered a second\n\n"
        f"Pairs of {size[0]} x {size[1]} with the truth of both views; {_machine()}.\n\n"
        f"{markdown_table(rows)}\n"
    )


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cores} cores, {platform.machine()}{gpu}, torch {torch.__version__}"


def _cases() -> Iterator[tuple[str, int]]:
    """0, 1, 2, 4... workers up to the cores, on the CPU and on the GPU if there is one."""
    cores = len(os.sched_getaffinity(0))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for workers in (0, *(2**k for k in range(cores.bit_length()))):
            if workers <= cores:
                yield device, workers


def main(*, out: Path, scenes: int = 96, size: tuple[int, int] = (256, 512)) -> None:
    """Measure how fast scenes are rendered.

    Args:
        out: Where to write; .json and .md are added.
        scenes: How many scenes each case times.
        size: Height and width of the scenes.
    """
    rates = []
    for device, workers in tqdm([*_cases()], unit="case"):
        warm_up = 4 + 4 * workers
        series = SyntheticScenes(size=size, count=warm_up + scenes, device=device)
        rates.append(measure_scenes(series, workers, warm_up))
    record = {"machine": _machine(), "size": size, "rates": [asdict(rate) for rate in rates]}
    write_json(out.with_suffix(".json"), record)
    write_text(out.with_suffix(".md"), scene_report(rates, size))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
