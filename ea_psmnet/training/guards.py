"""What a run does about steps that teach it nothing: not finite, or without truth."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["FiniteGuard", "TruthGuard"]


class FiniteGuard:
    """Counts skipped steps and ends the run after too many in a row."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0
        """Over the whole run."""
        self.in_a_row = 0

    def passed(self) -> None:
        """A step was finite."""
        self.in_a_row = 0

    def skip(self, step: int, cause: str, names: Sequence[str]) -> str:
        """Count a step that was skipped.

        Args:
            step: its number.
            cause: what was not finite.
            names: the samples it was computed from.

        Returns:
            A line for the user.

        Raises:
            FloatingPointError: that was one too many in a row.
        """
        self.skipped += 1
        self.in_a_row += 1
        line = f"step {step} skipped: the {cause} is not finite; samples: {', '.join(names)}"
        if self.in_a_row < self.limit:
            return line
        raise FloatingPointError(
            f"{self.in_a_row} steps in a row were not finite, at last {line}. The weights of the "
            "last good step are kept: go on from the run's model.safetensors by --init in another "
            "--out, with a lower --lr, --clip or --precision fp32"
        )

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` takes."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved state."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


class TruthGuard:
    """Ends a run that has found nothing to learn from since it started or went on.

    Single batches without truth do no harm; a dataset without any would train to the end on zeros.
    """

    LIMIT = 10
    """Steps."""

    def __init__(self, max_disparity: int) -> None:
        self.max_disparity = max_disparity
        self._steps = 0
        self._found = False

    def saw(self, pixels: int) -> None:
        """A step had so many counted pixels.

        Raises:
            ValueError: it was the last of the first `LIMIT` steps, and none had one.
        """
        self._found = self._found or pixels > 0
        self._steps += 1
        if not self._found and self._steps == self.LIMIT:
            raise ValueError(
                f"{self.LIMIT} steps without a single pixel of known disparity below "
                f"{self.max_disparity}: look at the dataset (python -m ea_psmnet data check) or "
                "raise --max-disparity"
            )
