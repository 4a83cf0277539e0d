"""Looks through a dataset on disk before a training run does: what is there, and is it right?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from datasets.builder import detect_dataset
from datasets.check_frames import Problem, check_file, frame_problems, readers_of, reason
from datasets.check_pairs import PairCheck, check_pair
from datasets.check_report import CheckReport
from datasets.check_series import Count, count_parts, find_series
from datasets.frames import Frame
from datasets.sceneflow import PUBLISHED_COUNTS

__all__ = ["check_dataset", "spread"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_RENDERED = "scenes.json"
"""What `write_sceneflow` leaves in its folder; imported from there, it would bring torch."""


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
        root: Its folder.
        name: A key of `datasets.builder.DATASETS`, or `auto`.
        max_disparity: Disparities over it are counted, in pixels.
        pairs: So many, spread evenly over the dataset, are compared view with view.
        whole: Whether fewer frames than published are a problem; scenes that the project rendered
            have no published number.
        workers: Threads.
        progress: Whether to show bars.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no known layout, or an argument is out of its range.
    """
    if workers < 1 or pairs < 0:
        raise ValueError(f"workers is {workers}, expected 1 or more; pairs {pairs}, 0 or more")
    if not 0 < max_disparity < float("inf"):
        raise ValueError(f"max_disparity is {max_disparity}, expected a number of pixels over 0")
    root = Path(root)
    name = detect_dataset(root) if name == "auto" else name
    series, problems = find_series(root, name)
    known = {} if (root / _RENDERED).exists() else PUBLISHED_COUNTS
    counts = [count for one in series for count in count_parts(one, known)]
    if whole:
        problems += _incomplete(counts)
    frames = [frame for one in series for frame in one.dataset.frames]
    run = partial(_in_threads, workers=workers, progress=progress)
    # Both passes and all splits may share a truth, which is opened once.
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
    """What `check_pair` finds, its failure included."""
    try:
        return check_pair(frame)
    except Exception as error:  # as of opening a file
        return Problem("not compared", frame.name, reason(error, frame.name))


def _has_all(problems: Iterable[Problem]) -> bool:
    """Whether the views can be compared: nothing is known that would be in the way."""
    return not any(problem.kind in ("unreadable", "size", "no truth") for problem in problems)


def spread(length: int, count: int) -> list[int]:
    """Up to `count` places of a sequence, evenly from its first to its last."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def _in_threads(
    task: Callable[[_Item], _Result],
    items: Sequence[_Item],
    what: str,
    *,
    workers: int,
    progress: bool,
) -> list[_Result]:
    """Results in order. Threads: decoding and counting happen outside of Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(task, items)
        try:
            return list(
                tqdm(results, unit=f" {what}", desc=what, total=len(items), disable=not progress)
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)  # interrupted: what has not begun is dropped
            raise
