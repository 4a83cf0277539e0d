"""A matcher on a dataset: errors image by image and over all pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ea_psmnet.files import write_image, write_json, write_text
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.outputs import sheet
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports.tables import markdown_table
from ea_psmnet.sample import StereoSample

__all__ = ["Evaluation", "ImageErrors", "evaluate", "sheet_writer", "write_report"]

OnPrediction = Callable[[StereoSample, NDArray[np.float32]], None]


@dataclass(frozen=True)
class ImageErrors:
    """One pair's errors."""

    name: str
    errors: DisparityErrors
    seconds: float
    """Time of the prediction alone."""


@dataclass(frozen=True)
class Evaluation:
    """Errors on a dataset, over pixels whose disparity is known and below the searched maximum.

    Totals are pooled: sums over all pixels of all images, so large images weigh more than small.
    """

    label: str
    max_disparity: int
    images: tuple[ImageErrors, ...]

    @property
    def total(self) -> DisparityErrors:
        """Errors over all counted pixels of all images."""
        return sum((image.errors for image in self.images), DisparityErrors())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; figures that are not finite are left out."""
        return {
            "label": self.label,
            "max_disparity": self.max_disparity,
            "protocol": f"pooled over pixels with known disparity below {self.max_disparity}",
            "total": _record(self.total),
            "images": [
                {"name": image.name, "seconds": round(image.seconds, 3)} | _record(image.errors)
                for image in self.images
            ],
        }

    def to_markdown(self) -> str:
        """A table with a row an image and one for all."""
        rows = [{"image": image.name} | image.errors.figures() for image in self.images]
        rows.append({"image": f"all {len(self.images)}"} | self.total.figures())
        return markdown_table(rows)


def _record(errors: DisparityErrors) -> dict[str, Any]:
    finite = {name: value for name, value in errors.figures().items() if math.isfinite(value)}
    return {"pixels": errors.pixels} | finite


def evaluate(
    matcher: StereoMatcher,
    dataset: Sequence[StereoSample],
    label: str,
    on_prediction: OnPrediction | None = None,
) -> Evaluation:
    """Predict every pair of a dataset and compare with its truth.

    Args:
        matcher: makes the predictions.
        dataset: the pairs.
        label: what to call the matcher in tables.
        on_prediction: called with each sample and its (H, W) disparity, to write pictures say.
    """
    images = []
    for index in tqdm(range(len(dataset)), desc=label, unit="pair"):
        sample = dataset[index]
        start = time.perf_counter()
        disparity = matcher(sample.left, sample.right).disparity
        seconds = time.perf_counter() - start
        counted = sample.valid & (sample.disparity < matcher.max_disparity)
        errors = DisparityErrors.measure(disparity, sample.disparity, counted)
        images.append(ImageErrors(sample.name, errors, seconds))
        if on_prediction is not None:
            on_prediction(sample, disparity)
    return Evaluation(label, matcher.max_disparity, tuple(images))


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write `report.json` and `report.md`."""
    write_json(folder / "report.json", evaluation.to_dict())
    write_text(folder / "report.md", f"# {evaluation.label}\n\n{evaluation.to_markdown()}\n")


def sheet_writer(folder: Path) -> OnPrediction:
    """A callback for `evaluate` that draws each pair into `sheets/` of a folder."""

    def write(sample: StereoSample, disparity: NDArray[np.float32]) -> None:
        name = sample.name.replace("/", "_")
        picture = sheet(sample.left, disparity, sample.disparity, sample.valid, sample.name)
        write_image(folder / "sheets" / f"{name}.png", picture)

    return write
