"""The record of a run: all of its logs behind one interface."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ea_psmnet.progress import Progress
from ea_psmnet.training.logs import MetricsLog, ProgressBar, TensorBoardLog, read_metrics
from ea_psmnet.training.run_folder import record_session
from ea_psmnet.training.summary import write_summary
from ea_psmnet.training.validation import Validation


class _Part(Protocol):
    """One of the logs of a run."""

    def step(self, step: int, figures: Mapping[str, float]) -> None: ...

    def validation(self, step: int, outcome: Validation) -> None: ...

    def close(self) -> None: ...


class RunRecord:
    """Progress bar, `metrics.jsonl`, TensorBoard, `environment.json` and a summary at the end.

    Args:
        folder: Run folder.
        start: Number of steps taken before; records of later steps, from a run that was killed, are
            dropped.
        steps: Number of steps of the whole run.
        facts: Parameters, precision, device and processes, for `environment.json` and the summary.
        validation_due: Whether the validation after `start` is still to come or repeated.
        enabled: Whether to record; only the main process does.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        steps: int,
        facts: Mapping[str, Any],
        *,
        validation_due: bool = False,
        enabled: bool = True,
    ) -> None:
        self._folder, self._enabled = folder, enabled
        self._parts: Sequence[_Part] = ()
        if enabled and start < steps:
            first = {"steps": steps, "steps_before": start}
            changed = record_session(folder / "environment.json", first | dict(facts))
            if start and changed:
                self.note(
                    f"warning: the run continues with {changed}: its result will not be identical "
                    "to that of a run that was not stopped"
                )
        if enabled:
            self._parts = (
                MetricsLog(folder / "metrics.jsonl", start, validation_due=validation_due),
                TensorBoardLog(folder / "tensorboard", start),
                ProgressBar(start, steps),
            )

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for part in self._parts:
            try:
                part.close()
            except OSError:  # an earlier error is reported instead
                if error is None:
                    raise
        # If writing failed, a summary would fail, too.
        begun = self._enabled and read_metrics(self._folder / "metrics.jsonl")
        if begun and not isinstance(error, OSError):
            try:
                write_summary(self._folder)
            except (FileNotFoundError, ValueError) as damage:  # not a reason to fail a finished run
                self.note(f"warning: no summary: {damage}")

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Record a step.

        Args:
            step: Number of steps taken.
            figures: loss, loss of each output, epe (px), lr, gradient_norm, samples_per_second,
                waiting (share of the time spent waiting for data), memory (peak in GiB) and skipped
                (number of steps skipped so far).

        Raises:
            OSError: The folder can no longer be written.
        """
        for part in self._parts:
            part.step(step, figures)

    def validation(self, step: int, outcome: Validation) -> None:
        """Record the validation after `step` steps.

        Raises:
            OSError: The folder can no longer be written.
        """
        for part in self._parts:
            part.validation(step, outcome)

    def note(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self._enabled:
            Progress.write(line, file=sys.stderr)
