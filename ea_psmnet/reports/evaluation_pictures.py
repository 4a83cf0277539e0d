"""Pictures of an evaluation, drawn while it runs: a sheet or an error map a pair, the worst ten."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import write_image
from ea_psmnet.inference.outputs import error_map, sheet
from ea_psmnet.inference.worst_sheet import SheetRow, sheet_row, worst_sheet
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports.processes import gather, process_index
from ea_psmnet.sample import StereoSample

__all__ = ["Pictures"]

_WORST = 10


class Pictures:
    """An observer of `evaluate_methods` that draws what is asked for into a folder.

    `sheets/METHOD/NAME.png` and `error_maps/METHOD/NAME.png` are written as predictions come;
    `worst/METHOD.png`, the ten pairs of the highest EPE, by `finish`.
    """

    def __init__(
        self, folder: Path, *, sheets: bool = False, error_maps: bool = False, worst: bool = False
    ) -> None:
        self._folder = folder
        self._sheets, self._error_maps = sheets, error_maps
        self._worst: dict[str, list[tuple[float, int, SheetRow]]] | None = {} if worst else None

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
        file = Path(_file_name(label)) / f"{_file_name(sample.name)}.png"
        if self._sheets:
            picture = sheet(sample.left, *views, f"{sample.name}, {label}")
            write_image(self._folder / "sheets" / file, picture)
        if self._error_maps:
            write_image(self._folder / "error_maps" / file, error_map(*views))
        if self._worst is not None and errors.pixels:
            figures = errors.figures()
            caption = f"{sample.name}: EPE {errors.epe:.2f} px, bad-3 {figures['bad-3']:.1f} %"
            badness = math.inf if math.isnan(errors.epe) else errors.epe
            rows = self._worst.setdefault(label, [])
            rows.append((badness, index, sheet_row(sample.left, *views, caption)))
            self._worst[label] = _top(rows)

    def finish(self) -> dict[str, str]:
        """Write the sheets of the worst pairs, of all processes together.

        Returns:
            What each shows, and its place in the folder.
        """
        if self._worst is None:
            return {}
        written = {}
        parts = gather([self._worst])  # at once: a process without pairs has no labels
        for label in dict.fromkeys(label for part in parts for label in part):
            worst = _top([row for part in parts for row in part.get(label, [])])
            title = f"{label}: the {len(worst)} pairs of the highest EPE"
            written[title] = f"worst/{_file_name(label)}.png"
            if process_index() == 0:
                picture = worst_sheet(title, [row for *_, row in worst])
                write_image(self._folder / written[title], picture)
        return written


def _top(rows: list[tuple[float, int, SheetRow]]) -> list[tuple[float, int, SheetRow]]:
    """The worst ten, worst first; of equals, the earlier in the dataset."""
    return sorted(rows, key=lambda row: (-row[0], row[1]))[:_WORST]


def _file_name(text: str) -> str:
    """Text as one component of a path that every file system takes."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
