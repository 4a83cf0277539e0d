"""Generated scenes beside other frames: disparity, edges, occlusion and texture.

    .venv/bin/python scripts/benchmarks/scene_statistics.py --frames FOLDER [--out OUT] [--help]

Renders scenes at the size of a training crop, reads the frames of FOLDER (any dataset that is
recognised) and writes OUT.json, OUT.md and OUT.png.
"""

from __future__ import annotations

from benchmarking import run, write_results

# isort: split

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.figures import COLOURS, dress, new_figure, to_image
from ea_psmnet.files import write_image
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import markdown_table

Grey = NDArray[np.float32]
DISPARITY_BINS = np.arange(0, 257, 8.0)
"""Edges in pixels; larger values count in the last bin."""
GRADIENT_BINS = np.geomspace(0.25, 128, 37)
"""Edges in grey levels per pixel; smaller and larger values count in the outermost bins."""
_FLAT = 2.0
"""Grey levels per pixel below which a pixel counts as flat."""
_JUMP = 3.0
"""Difference of disparity between neighbours, in pixels, above which there is an edge."""
_LEVELS = 16
"""Number of grey levels of the local entropy."""
_WINDOW = (9, 9)
"""Window of the local entropy, in pixels."""


@dataclass(frozen=True)
class Statistics:
    """Means of a set of pairs; every pair has the same weight."""

    pairs: int
    disparity: list[float]
    """Fraction of the valid pixels in each of `DISPARITY_BINS`."""
    gradient: list[float]
    """Fraction of the left image's pixels in each of `GRADIENT_BINS`."""
    scalars: dict[str, float]
    """Means over the pairs, by name."""


def measure(
    sample: StereoSample,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, float]]:
    """Measure a pair: two histograms, as fractions, and numbers by name.

    Raises:
        ValueError: It has no valid pixel.
    """
    if not sample.valid.any():
        raise ValueError(f"{sample.name}: no disparity is known")
    grey = cv2.cvtColor(sample.left, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gradient = _gradient(grey)
    known = sample.disparity[sample.valid]
    middle, large = np.percentile(known, (50, 99))
    scalars = {
        "median disparity, px": float(middle),
        "99th percentile of disparity, px": float(large),
        "disparity above 100 px, %": 100 * float((known > 100).mean()),
        "edges of disparity, % of pixels": 100 * _edge_share(sample),
        "hidden from the right eye, %": 100 * _occluded_share(sample),
        "mean gradient, grey levels": float(gradient.mean()),
        "gradient below 2 grey levels, %": 100 * float((gradient < _FLAT).mean()),
        "local entropy, bits": _entropy(grey),
        "contrast, grey levels": float(grey.std()),
        "burnt out, %": 100 * float((sample.left >= 254).all(2).mean()),
    }
    return _shares(known, DISPARITY_BINS), _shares(gradient, GRADIENT_BINS), scalars


def statistics(samples: Iterable[StereoSample]) -> Statistics:
    """Compute means over pairs.

    Raises:
        ValueError: There are no pairs, or one has no valid pixel.
    """
    found = [measure(sample) for sample in samples]
    if not found:
        raise ValueError("no pairs to measure")
    disparity, gradient, scalars = zip(*found, strict=True)
    means = {name: float(np.mean([one[name] for one in scalars])) for name in scalars[0]}
    return Statistics(
        len(found), np.mean(disparity, 0).tolist(), np.mean(gradient, 0).tolist(), means
    )


def _shares(values: NDArray, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], 0)), edges)
    return counts / values.size


def _gradient(grey: Grey) -> Grey:
    """Magnitude of the Sobel gradient, in grey levels per pixel."""
    across, down = (cv2.Sobel(grey, cv2.CV_32F, x, 1 - x, scale=1 / 8) for x in (1, 0))
    return np.hypot(across, down)


def _entropy(grey: Grey) -> float:
    """Mean entropy of the grey levels around every pixel."""
    level = np.minimum(grey * (_LEVELS / 256), _LEVELS - 1).astype(np.int32)
    total = np.zeros_like(grey)
    for one in range(_LEVELS):
        share = cv2.blur((level == one).astype(np.float32), _WINDOW)
        total -= share * np.log2(np.maximum(share, 1e-6))
    return float(total.mean())


def _edge_share(sample: StereoSample) -> float:
    """Fraction of pixels with a jump of disparity to the right or lower neighbour."""
    disparity = np.where(sample.valid, sample.disparity, np.nan)
    jumps = np.zeros(disparity.shape, bool)
    jumps[:, :-1] |= np.abs(np.diff(disparity, axis=1)) > _JUMP
    jumps[:-1] |= np.abs(np.diff(disparity, axis=0)) > _JUMP
    return float(jumps[sample.valid].mean())


def _occluded_share(sample: StereoSample) -> float:
    """Fraction of valid pixels that leave the right image or lie behind nearer ones there.

    Only the left disparity is used, so that all sets are measured alike.
    """
    rows, columns = np.nonzero(sample.valid)
    disparity = sample.disparity[rows, columns]
    target = np.round(columns - disparity).astype(int)
    inside = (target >= 0) & (target < sample.disparity.shape[1])
    nearest = np.zeros_like(sample.disparity)
    np.maximum.at(nearest, (rows[inside], target[inside]), disparity[inside])
    hidden = nearest[rows[inside], target[inside]] > disparity[inside] + 1
    return float(1 - inside.mean() + hidden.sum() / len(rows))


def _markdown(sets: dict[str, Statistics]) -> str:
    names = next(iter(sets.values())).scalars
    rows: list[dict[str, object]] = [
        {"measure": name, **{label: found.scalars[name] for label, found in sets.items()}}
        for name in names
    ]
    counts = ", ".join(f"{label}: {found.pairs} pairs" for label, found in sets.items())
    title = f"# Generated scenes beside other frames\n\nMeans over {counts}."
    return f"{title}\n\n{markdown_table(rows)}\n"


def statistics_plot(
    sets: Mapping[str, Statistics],
) -> NDArray[np.uint8]:
    """Draw the disparity and gradient histograms of some sets.

    Args:
        sets: Statistics by label.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for (label, found), colour in zip(sets.items(), COLOURS[1:], strict=False):
        for axes, shares, bins in (
            (left, found.disparity, DISPARITY_BINS),
            (right, found.gradient, GRADIENT_BINS),
        ):
            axes.stairs(np.array(shares) * 100, bins, label=label, color=colour, lw=1.6)
    dress(left, x="disparity in pixels", y="% of pixels")
    dress(right, x="gradient of the left image, grey levels per pixel", y="% of pixels")
    left.set_yscale("log")
    right.set_xscale("log")
    left.legend(frameon=False)
    figure.tight_layout()
    return to_image(figure)


def main(
    *,
    out: Path = Path("docs/results/scene-statistics"),
    frames: Path | None = None,
    only: str = "",
    scenes: int = 200,
    size: tuple[int, int] = (256, 512),
    textures: Path | None = None,
) -> None:
    """Compare generated scenes with frames of a folder.

    Args:
        out: Path of the files to write, without endings.
        frames: Folder of a dataset to compare with; default: scenes alone.
        only: Beginning of the names of the pairs to use.
        scenes: Number of scenes to render.
        size: Height and width of the scenes.
        textures: Folder of photographs for surfaces, besides the procedural textures.
    """
    sets: dict[str, Statistics] = {}
    if frames is not None:
        dataset = build_dataset("auto", frames)
        chosen = (s for s in tqdm(dataset, unit="pair") if s.name.startswith(only))
        sets[f"{only or frames.name}"] = statistics(chosen)
    series = SyntheticScenes(size=size, count=scenes, textures=textures)
    sets["generated"] = statistics(tqdm(series, unit="scene"))
    record = {label: asdict(found) for label, found in sets.items()}
    write_results(out, record, _markdown(sets))
    write_image(out.with_suffix(".png"), statistics_plot(sets))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
