"""What a check found, for people and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from datasets.check_frames import Problem, Values
from datasets.check_pairs import PairCheck
from datasets.check_series import Count
from ea_psmnet.files import printable

__all__ = ["CheckReport"]

_TOLD = 10
"""Problems of a kind that are printed; all of them are in the JSON."""


@dataclass(frozen=True)
class CheckReport:
    """What lies in a folder and what is wrong with it."""

    root: str
    dataset: str
    """A key of `datasets.builder.DATASETS`."""
    max_disparity: float
    counts: tuple[Count, ...]
    frames: int
    """Frames whose files were opened."""
    values: tuple[Values, ...]
    """Of truth files with odd pixels."""
    truths: int
    """Truth files that could be read."""
    without_truth: int
    """Frames that have none."""
    pairs: tuple[PairCheck, ...]
    """The frames whose views were compared."""
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `odd_pixels` lists paths and shares by kind."""
        odd = {
            kind: [{"path": path, "share": share} for path, share in files]
            for kind, files in self._odd().items()
        }
        plain = asdict(self)
        del plain["values"]
        return plain | {"odd_pixels": odd, "ok": not self.problems}

    def to_text(self) -> str:
        """Some lines for a terminal."""
        lines = [f"{self.root}: {self.dataset}", *self._lines(), *self._verdict()]
        return "\n".join(map(printable, lines))

    def _lines(self) -> Iterator[str]:
        for count in self.counts:
            of = "" if count.published is None else f" of {count.published} published"
            name = f" {count.part}" if count.part else ""
            yield f"  {count.series}:{name} {count.found} frames{of}"
        without = f", {self.without_truth} frames have none" if self.without_truth else ""
        yield f"  {self.frames} frames opened, {self.truths} of their truth files read{without}"
        for kind, files in self._odd().items():
            path, share = max(files, key=lambda file: file[1])
            told = f"over {self.max_disparity:g} pixels" if kind == "over" else kind
            yield f"  {told}: pixels in {len(files)} files, most {share:.2%} in {path}"
        yield from self._pair_lines()

    def _pair_lines(self) -> Iterator[str]:
        matched = [pair for pair in self.pairs if pair.across is not None]
        warped = [pair for pair in self.pairs if pair.errors]
        if matched:
            rows = max(abs(pair.down or 0) for pair in matched)
            back = max(pair.backwards or 0 for pair in matched)
            yield (
                f"  features of {len(matched)} pairs: rows differ by up to {rows:.1f} pixels "
                f"(medians), up to {back:.0%} lie further right in the right view"
            )
        if warped:
            means = {
                key: sum(pair.errors[key] for pair in warped) / len(warped)
                for key in ("minus", "plus", "zero")
            }
            yield (
                f"  warp error of {len(warped)} pairs: {means['minus']:.2f} at x - d, "
                f"{means['plus']:.2f} at x + d, {means['zero']:.2f} at x"
            )

    def _verdict(self) -> Iterator[str]:
        kinds: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[problem.kind].append(problem)
        for kind, problems in kinds.items():
            yield f"{kind}: {len(problems)}"
            yield from (f"  {problem.where}: {problem.what}" for problem in problems[:_TOLD])
            if len(problems) > _TOLD:
                yield f"  and {len(problems) - _TOLD} more"
        count = len(self.problems)
        yield f"{count} problem{'s' if count > 1 else ''}" if count else "nothing wrong"

    def _odd(self) -> dict[str, list[tuple[str, float]]]:
        """Files with odd pixels and their share, by kind."""
        odd: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for values in self.values:
            for kind, share in values.shares().items():
                odd[kind].append((values.path, share))
        return dict(odd)
