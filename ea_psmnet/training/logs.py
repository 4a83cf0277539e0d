"""Logs of a run: `metrics.jsonl`, TensorBoard, the progress bar, and the cost of a step."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from ea_psmnet.files import write_text
from ea_psmnet.inference.outputs import sheet
from ea_psmnet.machine import peak_bytes
from ea_psmnet.progress import Progress
from ea_psmnet.training.validation import Predicted, Validation

# metrics.jsonl ------------------------------------------------------------------------------------


Record = dict[str, Any]

_NEVER_NULL = {
    "step": ("elapsed", "samples_per_second", "waiting", "memory", "skipped"),
    "validation": ("elapsed", "images", "by_range"),
}


class MetricsLog:
    """Appends records to `metrics.jsonl`, one JSON object per line, without buffering.

    Every record has `kind` (step or validation), `step` (number of steps taken) and `elapsed`
    (seconds of training, including those before a resumption). Non-finite numbers are null.

    Args:
        path: The file; records of steps after `start`, and incomplete lines, are dropped.
        start: Number of steps taken before.
        validation_due: Whether the validation after `start` is repeated, so that its record is
            dropped, too.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, start: int, *, validation_due: bool = False) -> None:
        self._path = path
        ends = {"step": start, "validation": start - validation_due}
        kept = [record for record in read_metrics(path) if record["step"] <= ends[record["kind"]]]
        write_text(path, "".join(map(_line, kept)))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        before = max((record["elapsed"] for record in kept), default=0.0)
        self._began = time.perf_counter() - before

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Append the record of a step; raises an OSError if the disk is full."""
        self._append({"kind": "step", "step": step} | dict(figures))

    def validation(self, step: int, outcome: Validation) -> None:
        """Append the record of a validation; `by_range` has the errors by true disparity."""
        record = {"kind": "validation", "step": step, "images": outcome.images}
        by_range = {band: errors.figures() for band, errors in outcome.by_range.items()}
        self._append(record | outcome.errors.figures() | {"by_range": by_range})

    def _append(self, record: Record) -> None:
        elapsed = round(time.perf_counter() - self._began, 3)
        line = _line(record | {"elapsed": elapsed}).encode()
        try:
            written = os.write(self._file, line)  # unbuffered: a kill loses nothing
        except OSError as error:
            raise OSError(f"{self._path}: not written ({error.strerror})") from error
        if written < len(line):
            raise OSError(f"{self._path}: not written ({os.strerror(errno.ENOSPC)})")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_metrics(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl` in order, without damaged lines; empty without a file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [record for line in file if (record := _parsed(line)) is not None]


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if _is_whole(record) else None


def _is_whole(record: Any) -> bool:
    """Whether a record has all fields that its readers need."""
    if not isinstance(record, dict) or record.get("kind") not in ("step", "validation"):
        return False
    bands = record.get("by_range", {})
    figures = {name: value for name, value in record.items() if name not in ("kind", "by_range")}
    return (
        isinstance(record.get("step"), int)
        and record.get("samples_per_second") != 0
        and all(record.get(name) is not None for name in _NEVER_NULL[record["kind"]])
        and isinstance(bands, dict)
        and all(map(_are_figures, (figures, *bands.values())))
    )


def _are_figures(value: Any) -> bool:
    """Whether a value is a dict of finite numbers and nulls."""
    return isinstance(value, dict) and all(
        each is None or (isinstance(each, int | float) and math.isfinite(each))
        for each in value.values()
    )


def _line(record: Record) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent by None."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# TensorBoard --------------------------------------------------------------------------------------


_BY_RANGE = ("EPE", "bad-1", "bad-2", "bad-3")
_SHEET_WIDTH = 1000
"""Width of sheets in pixels: legible, at a fraction of the disk space of the full size."""


class TensorBoardLog:
    """Writes TensorBoard events: `train/…`, `validation/…`, `validation-…/BAND` and `sheets/…`.

    Args:
        folder: Folder of the event files.
        start: Number of steps taken before; readers drop earlier events of later steps.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._hook = threading.excepthook
        with self._naming_the_folder():
            self._writer = SummaryWriter(folder, purge_step=start + 1)
        threading.excepthook = self._pass_over_writers

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures of a step; raises an OSError if earlier events could not be written."""
        with self._naming_the_folder():
            self._scalars("train", step, figures)

    def validation(self, step: int, outcome: Validation) -> None:
        """Log errors over all pixels and by true disparity, and a sheet for each sample pair."""
        with self._naming_the_folder():
            self._errors(step, outcome)
            for number, shown in enumerate(outcome.shown):
                picture = _sheet(shown, step)
                self._writer.add_image(f"sheets/{number}", picture, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Write pending events; raises an OSError if that fails."""
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
        """Print no traceback of the writer thread: its error is raised at the next step."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._hook(arguments)


def _sheet(shown: Predicted, step: int) -> NDArray[np.uint8]:
    sample = shown.sample
    title = f"{sample.name}: EPE {shown.epe:.2f} px after {step} steps"
    full = sheet(sample.left, shown.disparity, sample.disparity, sample.valid, title)
    height = round(full.shape[0] * _SHEET_WIDTH / full.shape[1])
    return np.asarray(cv2.resize(full, (_SHEET_WIDTH, height), interpolation=cv2.INTER_AREA))


# Progress bar -------------------------------------------------------------------------------------


_FORMAT = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_SMOOTHING = 0.05
"""Smoothing of the remaining time: mostly the average, because validations slow single steps."""
_SECONDS_BETWEEN = (0.5, 30.0)
"""Refresh intervals of the bar on a terminal and in a file."""
_LONG_FOR_A_CPU = 48 * 3600
_FOR_A_CPU = (
    "--preset ea-psmnet-small --crop 128 256 --max-disparity 96 --batch 4 --schedule one-cycle "
    "--steps 2000"
)
"""Options of a short run, from the first stage of the recipe of the bundled weights."""


class ProgressBar:
    """A progress bar on stderr with steps, remaining time and current figures.

    Args:
        start: Number of steps taken before.
        steps: Number of steps of the whole run.
    """

    def __init__(self, start: int, steps: int) -> None:
        self._bar = Progress(
            total=steps,
            initial=start,
            bar_format=_FORMAT,
            smoothing=_SMOOTHING,
            mininterval=_SECONDS_BETWEEN[not sys.stderr.isatty()],
        )

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step, see `RunRecord.step`."""
        self._bar.set_postfix_str(_told(figures), refresh=False)
        self._bar.update(step - self._bar.n)

    def validation(self, step: int, outcome: Validation) -> None:
        """Print the errors of a validation on a line of their own."""
        figures = outcome.errors.figures()
        told = ", ".join(f"{name} {figures[name]:.1f} %" for name in ("bad-1", "bad-3"))
        line = f"validation after {step} steps: EPE {figures['EPE']:.3f} px, {told}"
        Progress.write(line, file=sys.stderr)

    def close(self) -> None:
        """Refresh and close the bar."""
        self._bar.refresh()
        self._bar.close()


def _told(figures: Mapping[str, float]) -> str:
    parts = [
        f"loss {figures['loss']:.3g}",
        f"EPE {figures['epe']:.3g}",
        f"{figures['samples_per_second']:.3g} samples/s",
        f"{figures['memory']:.1f} GiB",
        f"wait {figures['waiting']:.0%}",
    ]
    if figures.get("skipped"):
        parts.append(f"skipped {figures['skipped']:.0f}")
    return ", ".join(parts)


def expected_time(seconds: float, device: str) -> str:
    """Message about the duration of a run, with advice for a CPU if it is long."""
    told = f"estimated time: {_duration(seconds)}, if data loading keeps up"
    if device == "cpu" and seconds > _LONG_FOR_A_CPU:
        told += f"\nfor a first result on a CPU within hours, use {_FOR_A_CPU}"
    return told


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 120:
        return f"about {minutes} min"
    days = f" ({minutes / 1440:,.0f} days)" if minutes > 4 * 1440 else ""
    return f"about {minutes / 60:,.0f} h{days}"


# Time and memory of a step ------------------------------------------------------------------------


T = TypeVar("T")


class StepClock:
    """Measures time and memory of a step from its construction on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def timed(self, values: Iterable[T]) -> Iterator[T]:
        """Yield values and count the time until each comes as waiting for data."""
        source = iter(values)
        while True:
            before = time.perf_counter()
            try:
                value = next(source)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - before
            yield value

    def figures(self, samples: int) -> dict[str, float]:
        """Samples per second, share of the time spent waiting for data, and peak memory in GiB."""
        seconds = time.perf_counter() - self._start
        device = "cuda" if torch.cuda.is_initialized() else "cpu"
        return {
            "samples_per_second": samples / seconds,
            "waiting": self._waited / seconds,
            "memory": peak_bytes(torch.device(device)) / 2**30,
        }
