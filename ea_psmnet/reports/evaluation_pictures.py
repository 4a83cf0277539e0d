"""Pictures of an evaluation, drawn while it runs: a sheet or an error map a pair, the worst ten."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import write_image
from ea_psmnet.inference.outputs import error_map, sheet
from ea_psmnet.inference.worst_sheet import SheetRow, sheet_row, worst_sheet
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports.evaluation_data import Evaluation
from ea_psmnet.reports.methods import digest
from ea_psmnet.reports.processes import gather, process_index
from ea_psmnet.sample import StereoSample

__all__ = ["Pictures"]

_WORST = 10
Predict = Callable[[str, int], tuple[StereoSample, NDArray[np.float32]]]
"""A method's label and a place in the dataset to the pair and its disparity."""


class Pictures:
    """An observer of `evaluate_methods` that draws what is asked for into a folder.

    `sheets/METHOD/NAME.png` and `error_maps/METHOD/NAME.png` are written as predictions come;
    `worst/METHOD.png`, the ten pairs of the highest EPE, by `finish`. Until then the rows of this
    process's worst ten are held.
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
        """Prepare to draw.

        Args:
            folder: Where to.
            labels: Of all methods.
            names: Of all pairs.
            sheets: Whether to draw a sheet a pair.
            error_maps: Whether to draw an error map a pair.
            worst: Whether to draw the worst pairs of each method on a sheet.
        """
        self._folder = folder
        self._labels, self._names = _file_names(labels), _file_names(names)
        self._sheets, self._error_maps = sheets, error_maps
        self._worst: dict[str, dict[int, SheetRow]] | None = {} if worst else None
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
            title = f"{sample.name}, {label}: {_told(errors)}"
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
        """Write the sheets of the worst pairs, of all processes together.

        Args:
            evaluations: all that was found, of every method.
            predict: makes a prediction again whose picture is not at hand, as it was made before
                the evaluation was stopped and went on.

        Returns:
            What each shows, and its place in the folder.
        """
        if self._worst is None:
            return {}
        written = {}
        parts = gather([self._worst])  # at once: a process without pairs has no labels
        for each in evaluations:
            worst = _worst(dict(enumerate(image.errors for image in each.images)))
            title = f"{each.label}: the {len(worst)} pairs of the highest EPE"
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
    """Places of the worst ten, worst first; of equals, the earlier in the dataset."""
    badness = {
        place: math.inf if math.isnan(each.epe) else each.epe
        for place, each in errors.items()
        if each.pixels
    }
    return sorted(badness, key=lambda place: (-badness[place], place))[:_WORST]


def _row(sample: StereoSample, disparity: NDArray[np.float32], errors: DisparityErrors) -> SheetRow:
    caption = f"{sample.name}: {_told(errors)}"
    return sheet_row(sample.left, disparity, sample.disparity, sample.valid, caption)


def _told(errors: DisparityErrors) -> str:
    if not errors.pixels:
        return "no counted pixel"
    return f"EPE {errors.epe:.2f} px, bad-3 {errors.figures()['bad-3']:.1f} %"


_LONGEST = 200  # bytes; file systems take 255, with an ending


def _file_names(texts: Sequence[str]) -> dict[str, str]:
    """Texts as one component of a path each, that every file system takes and that differ.

    Those that would share one, as `a/b` and `a_b`, and those too long are told apart by a hash.
    """
    plain = {text: re.sub(r"[^\w.+-]+", "_", text).strip("_") for text in texts}
    shared = Counter(name.lower() for name in plain.values())  # some tell no capitals apart
    return {
        text: name
        if shared[name.lower()] == 1 and 0 < len(name.encode()) <= _LONGEST
        else f"{name.encode()[:_LONGEST].decode(errors='ignore')}-{digest(text)}"
        for text, name in plain.items()
    }
