"""TensorBoard: scalars of steps and validations, and sheets of what the network predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from ea_psmnet.inference.outputs import sheet
from ea_psmnet.training.validation import Predicted, Validation

__all__ = ["TensorBoardLog"]

_BY_RANGE = ("EPE", "bad-1", "bad-2", "bad-3")
_SHEET_WIDTH = 1000
"""Pixels: still legible, and a fraction of the disk that a run's sheets would take in full."""


class TensorBoardLog:
    """Writes event files; tags are `train/…`, `validation/…`, `validation-…/BAND` and `sheets/…`.

    Args:
        folder: of the event files.
        start: steps taken before; readers drop what an earlier run logged of later ones.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._writer = SummaryWriter(folder, purge_step=start + 1)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Log a step's figures."""
        self._scalars("train", step, figures)

    def validation(self, step: int, outcome: Validation) -> None:
        """Log errors over all pixels and by true disparity, and a sheet for each pair shown."""
        self._scalars("validation", step, outcome.errors.figures())
        by_range = {band: errors.figures() for band, errors in outcome.by_range.items()}
        for name in _BY_RANGE:
            bands = {band.replace(" ", "_"): each[name] for band, each in by_range.items()}
            self._scalars(f"validation-{name}", step, bands)
        for number, shown in enumerate(outcome.shown):
            picture = _sheet(shown, step)
            self._writer.add_image(f"sheets/{number}", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Finish what is still being written."""
        self._writer.close()

    def _scalars(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)


def _sheet(shown: Predicted, step: int) -> NDArray[np.uint8]:
    sample = shown.sample
    title = f"{sample.name}: EPE {shown.epe:.2f} px after {step} steps"
    full = sheet(sample.left, shown.disparity, sample.disparity, sample.valid, title)
    height = round(full.shape[0] * _SHEET_WIDTH / full.shape[1])
    return np.asarray(cv2.resize(full, (_SHEET_WIDTH, height), interpolation=cv2.INTER_AREA))
