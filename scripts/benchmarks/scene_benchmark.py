"""How fast scenes are rendered.

    .venv/bin/python scripts/benchmarks/scene_benchmark.py [--out OUT] [--help]

Renders 256 x 512 scenes through worker processes, on the CPU and on the GPU where there is one, and
writes OUT.json and OUT.md. Run nothing beside it.
"""

from __future__ import annotations

from benchmarking import machine, run, worker_counts, write_results

# isort: split

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import tyro
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import markdown_table


@dataclass(frozen=True)
class SceneRate:
    """Speed of rendering."""

    device: str
    workers: int
    """Number of worker processes, each with one thread; 0 renders in this one."""
    samples_per_second: float


def measure_scenes(scenes: SyntheticScenes, workers: int, warm_up: int) -> SceneRate:
    """Render scenes, and time those after the first `warm_up`.

    Args:
        scenes: The scenes, more than `warm_up`.
        workers: Number of worker processes; 0 renders in this one.
        warm_up: Number of scenes during which textures are built and queues filled.
    """
    if scenes.device == "cpu":
        scenes.prepare()  # forked workers share them
    loader: DataLoader[StereoSample] = DataLoader(
        cast("Dataset[StereoSample]", scenes),
        batch_size=None,
        num_workers=workers,
        # A forked process cannot use its parent's GPU.
        multiprocessing_context="spawn" if workers and scenes.device != "cpu" else None,
    )
    start = time.perf_counter()
    for done, _ in enumerate(loader, 1):
        if done == warm_up:
            start = time.perf_counter()
    rate = (len(scenes) - warm_up) / (time.perf_counter() - start)
    return SceneRate(scenes.device, workers, rate)


def scene_report(rates: list[SceneRate], size: tuple[int, int]) -> str:
    """Return the results as Markdown."""
    rows = [
        {"device": r.device, "workers": r.workers, "samples/s": r.samples_per_second} for r in rates
    ]
    return (
        "# Scenes rendered per second\n\n"
        f"Pairs of {size[0]} x {size[1]} with the ground truth of both views; {machine()}.\n\n"
        f"{markdown_table(rows)}\n"
    )


def _cases() -> list[tuple[str, int]]:
    """Return devices and numbers of workers."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [(device, workers) for device in devices for workers in worker_counts()]


def main(
    *,
    out: Path = Path("docs/results/scene-benchmark"),
    scenes: int = 96,
    size: tuple[int, int] = (256, 512),
) -> None:
    """Measure how fast scenes are rendered.

    Args:
        out: Path of the files to write, without endings.
        scenes: Number of scenes to time in every case.
        size: Height and width of the scenes.
    """
    rates = []
    for device, workers in tqdm(_cases(), unit="case"):
        warm_up = 4 + 4 * workers
        series = SyntheticScenes(size=size, count=warm_up + scenes, device=device)
        rates.append(measure_scenes(series, workers, warm_up))
    record = {"machine": machine(), "size": size, "rates": [asdict(rate) for rate in rates]}
    write_results(out, record, scene_report(rates, size))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
