"""Everything a run tells about itself while it runs, in one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tqdm import tqdm

from ea_psmnet.training.environment import record_session
from ea_psmnet.training.metrics_log import MetricsLog, read_metrics
from ea_psmnet.training.progress import ProgressBar
from ea_psmnet.training.summary import write_summary
from ea_psmnet.training.tensorboard_log import TensorBoardLog
from ea_psmnet.training.validation import Validation

__all__ = ["RunRecord"]


class _Part(Protocol):
    """One place that a run is recorded in."""

    def step(self, step: int, figures: Mapping[str, float]) -> None: ...

    def validation(self, step: int, outcome: Validation) -> None: ...

    def close(self) -> None: ...


class RunRecord:
    """What a run's main process records; others record nothing.

    A progress bar, `metrics.jsonl`, TensorBoard, `environment.json` and, at the end, a summary.

    Args:
        folder: the run folder.
        start: steps taken before; what was recorded of later ones by a run that was killed is
            dropped.
        steps: of the whole run.
        facts: for `environment.json` and the summary, beside what is found out here: parameters,
            precision, device and processes.
        validation_due: whether the validation after these steps is still to come, or to come again.
        enabled: false in all processes but the main one.

    Raises:
        OSError: the folder cannot be written.
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
                    f"warning: the run goes on with {changed}: it will not end bit for bit as if "
                    "it had not been stopped"
                )
        if enabled:
            self._parts = (
                MetricsLog(folder / "metrics.jsonl", start, validation_due=validation_due),
                TensorBoardLog(folder / "tensorboard", start),
                ProgressBar(start, steps),
            )

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for part in self._parts:
            try:
                part.close()
            except OSError:  # after another one, which is the one to tell
                if error is None:
                    raise
        # Where writing failed, a summary would fail, too.
        begun = self._enabled and read_metrics(self._folder / "metrics.jsonl")
        if begun and not isinstance(error, OSError):
            try:
                write_summary(self._folder)
            except ValueError as damage:  # by hand: no reason to fail a run that has done its work
                self.note(f"warning: no summary: {damage}")

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """A step was taken.

        Args:
            step: steps taken so far.
            figures: loss, loss of each output, epe (px), lr, gradient_norm, samples_per_second,
                waiting (share of the time for data), memory (GiB, the most held so far) and skipped
                (steps, so far).

        Raises:
            OSError: the folder cannot be written any more.
        """
        for part in self._parts:
            part.step(step, figures)

    def validation(self, step: int, outcome: Validation) -> None:
        """The weights after so many steps were validated.

        Raises:
            OSError: the folder cannot be written any more.
        """
        for part in self._parts:
            part.validation(step, outcome)

    def note(self, line: str) -> None:
        """Tell the user something beside the progress bar."""
        if self._enabled:
            tqdm.write(line, file=sys.stderr)
