"""Pictures of an evaluation: a sheet or an error map of every pair, and the worst ten pairs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.evaluation.evaluation import Evaluation
from ea_psmnet.evaluation.shares import gather, process_index
from ea_psmnet.figures import GridStyle, Row, fitted, panel_grid
from ea_psmnet.files import write_image
from ea_psmnet.inference.outputs import (
    coloured_beside_truth,
    error_bar,
    error_map,
    is_sparse,
    sheet,
)
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.sample import StereoSample
from ea_psmnet.store import digest

_WORST = 10
Predict = Callable[[str, int], tuple[StereoSample, NDArray[np.float32]]]
"""Returns pair and disparity for a predictor's label and an index in the dataset."""


class Pictures:
    """An observer of `evaluate_predictors` that draws into a folder.

    `sheets/LABEL/NAME.png` and `error_maps/LABEL/NAME.png` are written with every prediction;
    `worst/LABEL.png`, the ten pairs with the highest EPE, by `finish`. Until then the rows of this
    process's worst ten are held in memory.

    Args:
        folder: Folder for the pictures.
        labels: Labels of all predictors.
        names: Names of all pairs.
        sheets: Whether to draw a sheet of every pair.
        error_maps: Whether to draw an error map of every pair.
        worst: Whether to draw the worst pairs of every predictor.
    """

    def __init__(
        self,
        folder: Path,
        labels: Sequence[str],
        names: Sequence[str],
        *,
        sheets: bool = False,
        error_maps: bool = False,
        worst: bool = False,
    ) -> None:
        self._folder = folder
        self._labels, self._names = _file_names(labels), _file_names(names)
        self._sheets, self._error_maps = sheets, error_maps
        self._worst: dict[str, dict[int, Row]] | None = {} if worst else None
        self._errors: dict[str, dict[int, DisparityErrors]] = {}

    def __call__(
        self,
        label: str,
        index: int,
        sample: StereoSample,
        disparity: NDArray[np.float32],
        errors: DisparityErrors,
    ) -> None:
        """Draw one prediction."""
        views = (disparity, sample.disparity, sample.valid)
        file = Path(self._labels[label]) / f"{self._names[sample.name]}.png"
        if self._sheets:
            title = f"{sample.name}, {label}: {_described(errors)}"
            picture = sheet(sample.left, *views, title)
            write_image(self._folder / "sheets" / file, picture)
        if self._error_maps:
            write_image(self._folder / "error_maps" / file, error_map(*views))
        if self._worst is not None:
            known = self._errors.setdefault(label, {})
            known[index] = errors
            worst, rows = _worst(known), self._worst.setdefault(label, {})
            if index in worst:
                rows[index] = _row(sample, disparity, errors)
            self._worst[label] = {place: rows[place] for place in worst}

    def finish(self, evaluations: Sequence[Evaluation], predict: Predict) -> dict[str, str]:
        """Write the sheets of the worst pairs of all processes.

        `predict` repeats pairs whose picture is missing because they were predicted before the
        evaluation was stopped.

        Returns:
            Titles of the sheets, with their paths in the folder.
        """
        if self._worst is None:
            return {}
        written = {}
        parts = gather([self._worst])  # not by label: a process without pairs has none
        for each in evaluations:
            worst = _worst(dict(enumerate(image.errors for image in each.images)))
            title = f"{each.label}: the {len(worst)} pairs with the highest EPE"
            written[title] = f"worst/{self._labels[each.label]}.png"
            if process_index() == 0:
                drawn = {i: row for part in parts for i, row in part.get(each.label, {}).items()}
                rows = [
                    drawn.get(i) or _row(*predict(each.label, i), each.images[i].errors)
                    for i in worst
                ]
                write_image(self._folder / written[title], worst_sheet(title, rows))
        return written


def _worst(errors: Mapping[int, DisparityErrors]) -> list[int]:
    """Return the indices of the worst ten, worst first; of equals, the earlier in the dataset."""
    badness = {
        place: math.inf if math.isnan(each.epe) else each.epe
        for place, each in errors.items()
        if each.pixels
    }
    return sorted(badness, key=lambda place: (-badness[place], place))[:_WORST]


def _row(sample: StereoSample, disparity: NDArray[np.float32], errors: DisparityErrors) -> Row:
    caption = f"{sample.name}: {_described(errors)}"
    return sheet_row(sample.left, disparity, sample.disparity, sample.valid, caption)


def _described(errors: DisparityErrors) -> str:
    if not errors.pixels:
        return "no counted pixel"
    return f"EPE {errors.epe:.2f} px, bad-3 {errors.figures()['bad-3']:.1f} %"


_LONGEST = 200  # bytes; file systems take 255, with an ending


def _file_names(texts: Sequence[str]) -> dict[str, str]:
    """Turn texts into different file names that every file system accepts.

    Texts that would share a name, as `a/b` and `a_b`, and those that are too long get a hash.
    """
    plain = {text: re.sub(r"[^\w.+-]+", "_", text).strip("_") for text in texts}
    shared = Counter(name.lower() for name in plain.values())  # some ignore case
    return {
        text: name
        if shared[name.lower()] == 1 and 0 < len(name.encode()) <= _LONGEST
        else f"{name.encode()[:_LONGEST].decode(errors='ignore')}-{digest(text)}"
        for text, name in plain.items()
    }


# The sheet of the worst pairs ---------------------------------------------------------------------

_STYLE = GridStyle(400, 12, 24, line=34, size=12, title=76, title_size=16)
_TALLEST = 400
"""Pixels of the height of an image."""
_COLUMNS = ("left image", "predicted disparity", "absolute error", "ground truth")


def sheet_row(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    ground_truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    caption: str,
) -> Row:
    """Draw a pair as four small images; prediction and ground truth share a colour bar.

    Args:
        left: Left image (H, W, 3), uint8 RGB.
        disparity: Prediction (H, W) in pixels.
        ground_truth: Ground truth (H, W) in pixels.
        valid: Mask (H, W), true where the ground truth is known.
        caption: Description of the pair.
    """
    pictures, bar = coloured_beside_truth(disparity, ground_truth, valid)
    small = [fitted(picture, _STYLE.width, _TALLEST) for picture in pictures]
    image = fitted(left, _STYLE.width, _TALLEST, cv2.INTER_AREA)
    points = "; sparse ground truth, its points drawn larger" if is_sparse(valid) else ""
    return Row((image, *small), headings=(caption + points,), bar=bar)


def worst_sheet(title: str, rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Draw rows between the columns' names and a key to the colours, as (h, w, 3) uint8 RGB."""
    black = any((row.images[2] == 0).all(axis=-1).any() for row in rows)
    error = error_bar(complete=not black)
    details = "Disparity in pixels: the colours of each row are beside it"
    details += "; black: no ground truth" if black else ""
    return panel_grid(
        rows, _STYLE, title=title, details=details, columns=_COLUMNS, bars=(None, None, error)
    )
