"""Many pairs: in order, overlapping, and each with its own failure and warnings."""

import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.inference.many import Work, predict_many
from ea_psmnet.inference.result import StereoResult


@dataclass(frozen=True)
class Source:
    name: str
    number: int


SOURCES = [Source(f"pair {number}", number) for number in range(6)]


def result(number):
    disparity = np.array([[number, number + 2, np.nan]], np.float32)
    return StereoResult(disparity, np.zeros((1, 3, 3), np.uint8))


def work(**steps):
    return Work(
        **{
            "done": lambda source: [],
            "read": lambda source: source.number,
            "predict": lambda source, number: result(number),
            "write": lambda source, number, found: [Path(f"{number}.pfm")],
        }
        | steps
    )


def test_outcomes_come_in_order_with_their_figures():
    outcomes = list(predict_many(SOURCES, work()))
    assert [outcome.name for outcome in outcomes] == [source.name for source in SOURCES]
    assert [outcome.disparity for outcome in outcomes] == [(n, n + 2) for n in range(6)]
    assert [outcome.paths for outcome in outcomes] == [[Path(f"{n}.pfm")] for n in range(6)]
    assert {outcome.status for outcome in outcomes} == {"written"}


def fail_at(number, error, value=None):
    def step(source, *_):
        if source.number == number:
            raise error
        return source.number if value is None else value(source)

    return step


@pytest.mark.parametrize(
    "steps",
    [
        {"done": fail_at(2, FileExistsError("there"), lambda source: [])},
        {"read": fail_at(2, ValueError("damaged"))},
        {"predict": fail_at(2, MemoryError(), lambda source: result(source.number))},
        {"write": fail_at(2, OSError(28, "full"), lambda source: [])},
    ],
)
def test_a_failing_pair_does_not_stop_the_others(steps):
    outcomes = list(predict_many(SOURCES, work(**steps)))
    assert [outcome.status for outcome in outcomes] == ["written"] * 2 + ["failed"] + [
        "written"
    ] * 3
    assert outcomes[2].error is not None
    assert outcomes[2].to_dict()["error"] == str(outcomes[2].error)


@pytest.mark.parametrize("step", ["read", "predict", "write"])
def test_an_error_of_the_program_ends_it(step):
    outcomes = predict_many(SOURCES, work(**{step: fail_at(1, KeyError("bug"))}))
    with pytest.raises((KeyError, AttributeError)):
        list(outcomes)
    assert threading.active_count() < 4


def test_results_that_are_there_are_neither_read_nor_written():
    read = []

    def note(source):
        read.append(source.number)
        return source.number

    steps = work(done=lambda s: [Path("kept")] if s.number % 2 else [], read=note)
    outcomes = list(predict_many(SOURCES, steps))
    assert [outcome.skipped for outcome in outcomes] == [False, True] * 3
    assert outcomes[1].paths == [Path("kept")]
    assert read == [0, 2, 4]


def test_warnings_belong_to_their_pair_whatever_thread_gives_them():
    def warn(word, value):
        def step(source, *_):
            if source.number in (1, 3):
                warnings.warn(f"{word} {source.number}", stacklevel=1)
            return value(source)

        return step

    steps = work(
        read=warn("read", lambda source: source.number),
        predict=warn("predict", lambda source: result(source.number)),
        write=warn("write", lambda source: []),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcomes = list(predict_many(SOURCES, steps))
    told = [outcome.warnings for outcome in outcomes]
    expected = [[f"{word} {n}" for word in ("read", "predict", "write")] for n in range(6)]
    assert told == [expected[n] if n in (1, 3) else [] for n in range(6)]


def test_reading_and_writing_overlap_with_prediction():
    """Each step waits for the step of another pair: one after the other, they would never meet."""
    met = threading.Barrier(3, timeout=20)
    inside = {"read": 4, "predict": 3, "write": 2}

    def meet(name, value):
        def step(source, *_):
            if source.number == inside[name]:
                met.wait()
            return value(source)

        return step

    steps = work(
        read=meet("read", lambda source: source.number),
        predict=meet("predict", lambda source: result(source.number)),
        write=meet("write", lambda source: []),
    )
    assert len(list(predict_many(SOURCES, steps))) == 6


def test_few_pairs_are_held_at_once():
    counts, alive, lock = [], [0], threading.Lock()

    def change(by):
        with lock:
            alive[0] += by
            counts.append(alive[0])

    def read(source):
        change(1)
        return source.number

    def write(source, number, found):
        time.sleep(0.002)
        change(-1)
        return []

    many = [Source(str(number), number) for number in range(40)]
    list(predict_many(many, work(read=read, write=write)))
    assert max(counts) <= 8
