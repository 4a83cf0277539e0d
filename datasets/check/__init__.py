"""Checks a dataset on disk before training: missing, damaged and implausible files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ea_psmnet.datasets.builder import dataset_entry, detect_dataset
from ea_psmnet.datasets.check.files import (
    Problem,
    Values,
    check_file,
    frame_problems,
    readers_of,
    reason,
)
from ea_psmnet.datasets.check.pairs import PairCheck, check_pair
from ea_psmnet.datasets.check.series import Count, count_parts, find_series
from ea_psmnet.datasets.frames import Frame
from ea_psmnet.files import printable
from ea_psmnet.progress import Progress
from ea_psmnet.tables import check_range

_TOLD = 10
"""Number of problems of a kind to print; the JSON has all of them."""


@dataclass(frozen=True)
class CheckReport:
    """Content of a dataset folder, and its problems."""

    root: str
    dataset: str
    """A key of `ea_psmnet.datasets.builder.DATASETS`."""
    max_disparity: float
    counts: tuple[Count, ...]
    frames: int
    """Number of frames whose files were opened."""
    values: tuple[Values, ...]
    """Counts of pixels in the ground truth files that have odd ones."""
    truths: int
    """Number of ground truth files that could be read."""
    without_truth: int
    """Number of frames without ground truth."""
    pairs: tuple[PairCheck, ...]
    """Results of the frames whose views were compared."""
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; `odd_pixels` lists paths and shares by kind."""
        odd = {
            kind: [{"path": path, "share": share} for path, share in files]
            for kind, files in self._odd().items()
        }
        plain = asdict(self)
        del plain["values"]
        return plain | {"odd_pixels": odd, "ok": not self.problems}

    def to_text(self) -> str:
        """Return the report as lines for a terminal."""
        lines = [f"{self.root}: {self.dataset}", *self._lines(), *self._verdict()]
        return "\n".join(map(printable, lines))

    def _lines(self) -> Iterator[str]:
        for count in self.counts:
            of = "" if count.published is None else f" of {count.published} published"
            name = f" {count.part}" if count.part else ""
            yield f"  {count.series}:{name} frames: {count.found}{of}"
        without = self.without_truth
        yield f"  frames opened: {self.frames}; ground truth files read: {self.truths}" + (
            f"; frames without ground truth: {without}" if without else ""
        )
        for kind, files in self._odd().items():
            path, share = max(files, key=lambda file: file[1])
            told = f"over {self.max_disparity:g} pixels" if kind == "over" else kind
            yield f"  {told}: in {len(files)} of {self.truths} files, at most {share:.2%} in {path}"
        yield from self._pair_lines()

    def _pair_lines(self) -> Iterator[str]:
        matched = [pair for pair in self.pairs if pair.across is not None]
        warped = [pair for pair in self.pairs if pair.errors]
        if matched:
            rows = max(abs(pair.down or 0) for pair in matched)
            back = max(pair.backwards or 0 for pair in matched)
            yield (
                f"  pairs with matched features: {len(matched)}; rows differ by up to {rows:.1f} "
                f"pixels (medians), up to {back:.0%} lie further right in the right view"
            )
        if warped:
            means = {
                key: sum(pair.errors[key] for pair in warped) / len(warped)
                for key in ("minus", "plus", "zero")
            }
            yield (
                f"  pairs warped: {len(warped)}; mean error {means['minus']:.2f} at x - d, "
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
        """Return files with odd pixels and their share, by kind."""
        odd: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for values in self.values:
            for kind, share in values.shares().items():
                odd[kind].append((values.path, share))
        return dict(odd)


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_RENDERED = "scenes.json"
"""Settings file of `write_sceneflow`; not imported from there, as that imports torch."""


def check_dataset(
    root: str | Path,
    *,
    name: str = "auto",
    max_disparity: float = 192,
    pairs: int = 32,
    whole: bool = True,
    workers: int = 4,
    progress: bool = True,
) -> CheckReport:
    """Open every file of a dataset, and compare the views of some of its pairs.

    Args:
        root: Folder of the dataset, or a list of pairs.
        name: A key of `ea_psmnet.datasets.builder.DATASETS`, or `auto`.
        max_disparity: Disparities over it are counted, in pixels.
        pairs: Number of pairs, spread evenly over the dataset, whose views are compared.
        whole: Whether fewer frames than published are a problem; scenes rendered by the project
            have no published number.
        workers: Number of threads.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: Its layout or `name` is unknown, or an argument is out of range.
    """
    check_range("workers", workers, 1, 1024)
    check_range("pairs", pairs, 0, 10**9)
    if not 0 < max_disparity < float("inf"):
        raise ValueError(f"max_disparity is {max_disparity}, expected a number of pixels over 0")
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    name = detect_dataset(root) if name == "auto" else name
    series, problems = find_series(root, name)
    rendered = any((folder / _RENDERED).exists() for folder in (root, root.resolve().parent))
    known = {} if rendered else dataset_entry(name).published_counts
    counts = [count for one in series for count in count_parts(one, known)]
    if whole:
        problems += _incomplete(counts)
    frames = [frame for one in series for frame in one.dataset.frames]
    run = partial(_in_threads, workers=workers, progress=progress)
    # Render passes and splits may share ground truth, which is opened once.
    files = {role: read for frame in frames for role, read in readers_of(frame)}
    found = run(partial(check_file, max_disparity=max_disparity), [*files.items()], "files")
    checks = dict(zip(files, found, strict=True))
    told = [tuple(frame_problems(frame, checks)) for frame in frames]
    sound = [frame for frame, ones in zip(frames, told, strict=True) if _has_all(ones)]
    compared = run(_compared, [sound[place] for place in spread(len(sound), pairs)], "pairs")
    pair_checks = [pair for pair in compared if isinstance(pair, PairCheck)]
    problems += [problem for ones in told for problem in ones]
    for pair in compared:
        problems += pair.problems() if isinstance(pair, PairCheck) else [pair]
    values = [check.values for check in found if check.values is not None]
    return CheckReport(
        root=str(root),
        dataset=name,
        max_disparity=max_disparity,
        counts=tuple(counts),
        frames=len(frames),
        values=tuple(one for one in values if one.shares()),
        truths=len(values),
        without_truth=sum(frame.left_view.disparity is None for frame in frames),
        pairs=tuple(pair_checks),
        problems=tuple(dict.fromkeys(problems)),
    )


def _incomplete(counts: Iterable[Count]) -> Iterator[Problem]:
    for count in counts:
        if not count.complete:
            told = f"{count.found} frames, {count.published} published"
            yield Problem("incomplete", f"{count.series}: {count.part}", told)


def _compared(frame: Frame) -> PairCheck | Problem:
    """Return the result of `check_pair`, or a problem if it fails."""
    try:
        return check_pair(frame)
    except Exception as error:  # of any kind, as in `check_file`
        return Problem("not compared", frame.name, reason(error, frame.name))


def _has_all(problems: Iterable[Problem]) -> bool:
    """Return whether the views can be compared, given the problems of the files."""
    return not any(problem.kind in ("unreadable", "size", "no truth") for problem in problems)


def spread(length: int, count: int) -> list[int]:
    """Return up to `count` indices of a sequence, spread evenly from the first to the last."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def _in_threads(
    task: Callable[[_Item], _Result],
    items: Sequence[_Item],
    what: str,
    *,
    workers: int,
    progress: bool,
) -> list[_Result]:
    """Map in threads, with results in order; decoding and counting release Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(task, items)
        try:
            return list(
                Progress(
                    results, unit=f" {what}", desc=what, total=len(items), disable=not progress
                )
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)  # interrupted: drop what has not started
            raise
