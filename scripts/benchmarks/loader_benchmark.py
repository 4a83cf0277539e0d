"""How fast training samples are read from files.

    .venv/bin/python scripts/benchmarks/loader_benchmark.py [OUT] [--help]

Renders a few 540 x 960 frames as PNG and PFM into a temporary folder, reads them again and again
through worker processes into 256 x 512 samples, and writes OUT.json and OUT.md. The system caches
the files, so the figures are of decoding and cropping, not of a disk. Run nothing beside it.
"""

from __future__ import annotations

from benchmarking import machine, run, worker_counts, write_results

# isort: split

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
import tyro
from torch.utils.data import Dataset
from tqdm import tqdm

from ea_psmnet.datasets.augment import AUGMENTATIONS, Recipe, augment
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.sceneflow import SceneFlow
from ea_psmnet.datasets.synthetic import SyntheticScenes, write_sceneflow
from ea_psmnet.datasets.workers import loaded
from ea_psmnet.experiments.measure import median_seconds
from ea_psmnet.files import read_disparity, read_image
from ea_psmnet.machine import single_opencv_thread
from ea_psmnet.tables import markdown_table

_IMAGE, _CROP = (540, 960), (256, 512)
_FRAMES = 4
_BATCH = 8
_WARM_UP, _COUNTED = 32, 160
"""Numbers of samples; during the warm-up workers start and fill their queues."""
_REPEATS = 25
_OPENCV = f"OpenCV {cv2.__version__}"


@dataclass(frozen=True)
class Rate:
    """Speed of a loader."""

    recipe: str
    workers: int
    """Number of worker processes; 0 reads in the main process."""
    samples_per_second: float


@dataclass(frozen=True)
class Stage:
    """A step of making a sample, on one thread."""

    name: str
    milliseconds: float


class _Samples(Dataset[tuple[np.ndarray, ...]]):
    """From an index to the arrays of a training sample."""

    def __init__(self, frames: FrameDataset, recipe: Recipe, crop: tuple[int, int]) -> None:
        self.frames, self.recipe, self.crop = frames, recipe, crop

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        frame = self.frames[position % len(self.frames)]
        sample = augment(frame, self.crop, self.recipe, np.random.default_rng(position))
        return sample.left, sample.right, sample.disparity, sample.valid


def _stacked(samples: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Make a batch, as in training."""
    return tuple(map(np.stack, zip(*samples, strict=True)))


def measure_rate(
    frames: FrameDataset,
    recipe: str,
    workers: int,
    *,
    crop: tuple[int, int] = _CROP,
    warm_up: int = _WARM_UP,
    counted: int = _COUNTED,
) -> Rate:
    """Measure the samples per second of a loader.

    Args:
        frames: Read again and again, in order.
        recipe: A key of `ea_psmnet.datasets.augment.AUGMENTATIONS`.
        workers: Number of worker processes; 0 reads in this one.
        crop: Height and width of the samples.
        warm_up: Number of samples before the measurement.
        counted: Number of samples to time.
    """
    samples = _Samples(frames, AUGMENTATIONS[recipe], crop)
    options = {"batch_size": _BATCH, "sampler": range(warm_up + counted), "collate_fn": _stacked}
    start, done = time.perf_counter(), 0
    with loaded(samples, workers, **options) as batches:
        for left, *_ in batches:
            if done < warm_up <= done + len(left):
                start, counted = time.perf_counter(), warm_up + counted - done - len(left)
            done += len(left)
    return Rate(recipe, workers, counted / (time.perf_counter() - start))


def measure_stages(frames: FrameDataset, crop: tuple[int, int] = _CROP) -> list[Stage]:
    """Time the steps of making a sample of the first frame, each alone; medians."""
    frame, sample = frames.frames[0], frames[0]
    rng = np.random.default_rng(0)
    window = np.s_[: crop[0], : crop[1]]
    steps: dict[str, Callable[[], object]] = {
        "decode both images": lambda: (read_image(frame.left), read_image(frame.right)),
        "read the disparity": lambda: read_disparity(frame.disparity),
        "read the disparity of the crop alone": lambda: read_disparity(
            frame.disparity, window=window
        ),
    }
    for name, recipe in AUGMENTATIONS.items():
        steps[f"crop and change by recipe {name}"] = partial(augment, sample, crop, recipe, rng)
    return [
        Stage(name, 1e3 * median_seconds(step, torch.device("cpu"), _REPEATS))
        for name, step in steps.items()
    ]


def loader_report(rates: Sequence[Rate], stages: Sequence[Stage]) -> str:
    """Return the results as Markdown."""
    rows = [
        {"recipe": r.recipe, "workers": r.workers, "samples/s": r.samples_per_second} for r in rates
    ]
    parts = [{"step, one thread": stage.name, "ms": stage.milliseconds} for stage in stages]
    return (
        "# Training samples from files\n\n"
        f"PNG and PFM at {_IMAGE[0]} x {_IMAGE[1]} to samples of {_CROP[0]} x {_CROP[1]}, batches "
        f"of {_BATCH}, files cached by the system; {machine(_OPENCV)}.\n\n"
        f"{markdown_table(rows)}\n\n{markdown_table(parts)}\n"
    )


def _frames(folder: Path) -> FrameDataset:
    scenes = SyntheticScenes(size=_IMAGE, count=_FRAMES)
    write_sceneflow(folder, train=scenes, test=SyntheticScenes(split="test", size=_IMAGE, count=0))
    return SceneFlow(folder)


def main(out: tyro.conf.Positional[Path] = Path("docs/results/loader-benchmark")) -> None:
    """Measure, and write OUT.json and OUT.md.

    Args:
        out: Path of the files to write, without endings.
    """
    single_opencv_thread()
    with TemporaryDirectory() as folder:
        frames = _frames(Path(folder))
        stages = measure_stages(frames)
        cases = [(recipe, workers) for recipe in AUGMENTATIONS for workers in worker_counts()]
        rates = [measure_rate(frames, *case) for case in tqdm(cases, unit="case")]
    record = {
        "machine": machine(_OPENCV),
        "rates": [asdict(rate) for rate in rates],
        "stages": [asdict(stage) for stage in stages],
    }
    write_results(out, record, loader_report(rates, stages))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
