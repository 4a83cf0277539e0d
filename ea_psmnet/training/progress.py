"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

from ea_psmnet.training.validation import Validation

__all__ = ["ProgressBar", "expected_time"]

_FORMAT = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_SMOOTHING = 0.05
"""Of the time left: mostly the average, as validations make single steps slow."""
_SECONDS_BETWEEN = (0.5, 30.0)
"""Two drawings, on a terminal and in a file."""
_LONG_FOR_A_CPU = 48 * 3600
_FOR_A_CPU = (
    "--preset ea-psmnet-small --crop 128 256 --max-disparity 96 --batch 4 --schedule one-cycle "
    "--steps 2000"
)
"""After the first stage of the bundled weights' recipe."""


class ProgressBar:
    """One line on stderr: steps, time left, and the newest figures.

    Args:
        start: steps taken before.
        steps: of the whole run.
    """

    def __init__(self, start: int, steps: int) -> None:
        self._bar = tqdm(
            total=steps,
            initial=start,
            bar_format=_FORMAT,
            smoothing=_SMOOTHING,
            mininterval=_SECONDS_BETWEEN[not sys.stderr.isatty()],
        )

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """A step was taken; for the figures see `RunRecord.step`."""
        self._bar.set_postfix_str(_told(figures), refresh=False)
        self._bar.update(step - self._bar.n)

    def validation(self, step: int, outcome: Validation) -> None:
        """Tell the errors on a line of their own."""
        figures = outcome.errors.figures()
        told = ", ".join(f"{name} {figures[name]:.1f} %" for name in ("bad-1", "bad-3"))
        line = f"validation after {step} steps: EPE {figures['EPE']:.3f} px, {told}"
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the line as it is at the end."""
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
    """What to tell of how long a run takes, and on a CPU of a run that ends in hours."""
    told = f"estimated time: {_duration(seconds)}, if samples come as fast"
    if device == "cpu" and seconds > _LONG_FOR_A_CPU:
        told += f"\na CPU learns something within hours by {_FOR_A_CPU}"
    return told


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 120:
        return f"about {minutes} min"
    days = f" ({minutes / 1440:,.0f} days)" if minutes > 4 * 1440 else ""
    return f"about {minutes / 60:,.0f} h{days}"
