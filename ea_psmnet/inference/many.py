"""Prediction of many pairs: reading, predicting and writing overlap; a failure stops no other."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ea_psmnet.console import is_out_of_memory
from ea_psmnet.inference.result import StereoResult

_AHEAD = 2
"""Pairs that are read ahead, and results that wait to be written: this many are held in memory."""


class Named(Protocol):
    """A pair among many."""

    @property
    def name(self) -> str:
        """Name of the results."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a pair."""

    name: str
    paths: list[Path] = field(default_factory=list)
    """Files that were written, or that existed if the pair was skipped."""
    skipped: bool = False
    """Whether the results existed already."""
    seconds: float = 0.0
    """Time of the prediction, without reading and writing."""
    disparity: tuple[float, float] | None = None
    """Smallest and largest disparity, in pixels; None without a prediction."""
    warnings: list[str] = field(default_factory=list)
    error: Exception | None = None
    """Why there are no results; None if there are."""

    @property
    def status(self) -> str:
        """One of written, skipped and failed."""
        return "failed" if self.error else "skipped" if self.skipped else "written"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "paths": [str(path) for path in self.paths],
            "seconds": round(self.seconds, 4),
            "disparity": self.disparity,
            "warnings": self.warnings,
            "error": None if self.error is None else str(self.error),
        }


S = TypeVar("S", bound=Named)
T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[S, T]):
    """The steps of a prediction, each a function of one pair."""

    done: Callable[[S], list[Path]]
    """Returns the existing results to keep; if there are none, the pair is predicted."""
    read: Callable[[S], T]
    """Reads a pair."""
    predict: Callable[[S, T], StereoResult]
    """Predicts what was read."""
    write: Callable[[S, T, StereoResult], list[Path]]
    """Writes a result and returns its files."""


def predict_many(sources: Sequence[S], work: Work[S, T]) -> Iterator[Outcome]:
    """Predict pairs one after the other, while others are read and written in threads.

    Bad input, files that cannot be written and lack of memory are the outcome of their pair; other
    exceptions are errors of the program and end everything. Warnings of a thread belong to the pair
    that it works on.

    Yields:
        An outcome for each pair, in their order.
    """
    reading = ThreadPoolExecutor(1, "reading")
    writing = ThreadPoolExecutor(1, "writing")
    ahead: deque[tuple[S, Future[tuple[Outcome, T | None]]]] = deque()
    behind: deque[Future[Outcome]] = deque()
    waiting = iter(sources)
    with _heard():
        try:
            while True:
                while len(ahead) <= _AHEAD and (source := next(waiting, None)) is not None:
                    ahead.append((source, reading.submit(_read, source, work)))
                if not ahead:
                    break
                source, future = ahead.popleft()
                outcome, pair = future.result()
                behind.append(_predicted(source, outcome, pair, work, writing))
                while len(behind) > _AHEAD:
                    yield behind.popleft().result()
            while behind:
                yield behind.popleft().result()
        finally:
            reading.shutdown(cancel_futures=True)
            writing.shutdown(cancel_futures=True)


def _read(source: S, work: Work[S, T]) -> tuple[Outcome, T | None]:
    outcome = Outcome(source.name)
    with _thread.of(outcome):
        try:
            if kept := work.done(source):
                return replace(outcome, paths=kept, skipped=True), None
            return outcome, work.read(source)
        except Exception as error:
            return _failed(outcome, error), None


def _predicted(
    source: S, outcome: Outcome, pair: T | None, work: Work[S, T], writing: ThreadPoolExecutor
) -> Future[Outcome]:
    """Predict a pair if it was read, and let a thread write the result."""
    if pair is None:
        finished: Future[Outcome] = Future()
        finished.set_result(outcome)
        return finished
    start = time.perf_counter()
    result = None
    with _thread.of(outcome):
        try:
            result = work.predict(source, pair)
            outcome = replace(outcome, disparity=result.disparity_range())
        except Exception as error:
            outcome = _failed(outcome, error)
    outcome = replace(outcome, seconds=time.perf_counter() - start)
    return writing.submit(_written, source, outcome, pair, result, work)


def _written(
    source: S, outcome: Outcome, pair: T, result: StereoResult | None, work: Work[S, T]
) -> Outcome:
    if result is None:
        return outcome
    with _thread.of(outcome):
        try:
            return replace(outcome, paths=work.write(source, pair, result))
        except Exception as error:
            return _failed(outcome, error)


def _failed(outcome: Outcome, error: Exception) -> Outcome:
    if isinstance(error, ValueError | OSError | FloatingPointError) or is_out_of_memory(error):
        return replace(outcome, error=error)
    raise error


# Warnings, which Python handles for the whole process, belong to the pair of a thread -------------


class _Thread(threading.local):
    """The pair that a thread works on."""

    outcome: Outcome | None = None

    @contextmanager
    def of(self, outcome: Outcome) -> Iterator[None]:
        self.outcome = outcome
        try:
            yield
        finally:
            self.outcome = None


_thread = _Thread()


@contextmanager
def _heard() -> Iterator[None]:
    """Collect warnings in the outcomes of the threads' pairs."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def hear(message: Warning | str, *place: Any, **options: Any) -> None:
            outcome = _thread.outcome
            if outcome is None:
                show(message, *place, **options)
            elif str(message) not in outcome.warnings:
                outcome.warnings.append(str(message))

        warnings.showwarning = hear
        yield
