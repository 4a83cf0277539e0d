"""TensorBoard: scalars of steps and validations, and sheets of what the network predicts."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._hook = threading.excepthook
        with self._naming_the_folder():
            self._writer = SummaryWriter(folder, purge_step=start + 1)
        threading.excepthook = self._pass_over_writers

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Log a step's figures.

        Raises:
            OSError: the events of an earlier step could not be written.
        """
        with self._naming_the_folder():
            self._scalars("train", step, figures)

    def validation(self, step: int, outcome: Validation) -> None:
        """Log errors over all pixels and by true disparity, and a sheet for each pair shown.

        Raises:
            OSError: they cannot be written.
        """
        with self._naming_the_folder():
            self._errors(step, outcome)
            for number, shown in enumerate(outcome.shown):
                picture = _sheet(shown, step)
                self._writer.add_image(f"sheets/{number}", picture, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Finish what is still being written.

        Raises:
            OSError: it cannot be written.
        """
        with self._naming_the_folder():
            try:
                self._writer.close()
            finally:
                threading.excepthook = self._hook

    def _errors(self, step: int, outcome: Validation) -> None:
        self._scalars("validation", step, outcome.errors.figures())
        by_range = {band: errors.figures() for band, errors in outcome.by_range.items()}
        for name in _BY_RANGE:
            bands = {band.replace(" ", "_"): each[name] for band, each in by_range.items()}
            self._scalars(f"validation-{name}", step, bands)

    def _scalars(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._folder}: not written ({error.strerror})") from error

    def _pass_over_writers(self, arguments: threading.ExceptHookArgs) -> None:
        """No traceback of the thread that writes: its error is raised again at the next step."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._hook(arguments)


def _sheet(shown: Predicted, step: int) -> NDArray[np.uint8]:
    sample = shown.sample
    title = f"{sample.name}: EPE {shown.epe:.2f} px after {step} steps"
    full = sheet(sample.left, shown.disparity, sample.disparity, sample.valid, title)
    height = round(full.shape[0] * _SHEET_WIDTH / full.shape[1])
    return np.asarray(cv2.resize(full, (_SHEET_WIDTH, height), interpolation=cv2.INTER_AREA))
