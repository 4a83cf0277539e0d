"""Everything a run tells about itself while it runs, in one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ea_psmnet.sample import StereoSample

__all__ = ["Predicted", "RunRecord"]

Predicted = tuple[StereoSample, NDArray[np.float32]]
"""A validation pair and its predicted disparity, (H, W) in pixels."""

_IN_THE_BAR = {"loss": "loss", "epe": "EPE", "samples_per_second": "samples/s", "waiting": "wait"}


class RunRecord:
    """Progress bar and TensorBoard of a run's main process; others record nothing.

    Args:
        folder: the run folder.
        start: steps taken before; what was logged of later ones by a run that was killed is
            dropped.
        steps: of the whole run.
        enabled: false in all processes but the main one.
    """

    def __init__(self, folder: Path, start: int, steps: int, *, enabled: bool = True) -> None:
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not enabled)
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=start) if enabled else None

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """A step, counted from 0, was taken.

        Args:
            step: its number.
            figures: loss, epe (px), lr, gradient_norm, samples_per_second, waiting (share of the
                time for data), memory (GiB, the most held so far) and skipped (steps, so far).
        """
        self._bar.update()
        shown = {label: figures[name] for name, label in _IN_THE_BAR.items() if name in figures}
        self._bar.set_postfix({label: f"{value:.3g}" for label, value in shown.items()})
        self._scalars("train", step, figures)

    def validation(
        self, step: int, figures: Mapping[str, float], samples: Sequence[Predicted]
    ) -> None:
        """The weights after so many steps were validated.

        Args:
            step: steps taken.
            figures: of `DisparityErrors.figures`.
            samples: a few pairs with their predictions.
        """
        self._scalars("validation", step, figures)

    def note(self, line: str) -> None:
        """Tell the user something beside the progress bar."""
        if self._writer is not None:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Finish what is still being written."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
