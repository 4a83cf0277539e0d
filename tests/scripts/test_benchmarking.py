"""What the benchmarks share."""

import os
from pathlib import Path

import benchmarking
import pytest

SCRIPT = """
import os
from benchmarking import run

def answer(request):
    if request["number"] < 0:
        raise RuntimeError("negative")
    return {"twice": 2 * request["number"], "extra": os.environ["EXTRA"]}

run(lambda: 3, answer)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_fresh_process_answers_or_dies(script):
    folder = str(Path(benchmarking.__file__).parent)
    env = os.environ | {"PYTHONPATH": folder, "EXTRA": "given"}
    assert benchmarking.ask(script, {"number": 21}, env) == {"twice": 42, "extra": "given"}
    with pytest.raises(ChildProcessError, match="ended with exit status"):
        benchmarking.ask(script, {"number": -1}, env)


def test_without_a_request_the_program_runs():
    with pytest.raises(SystemExit) as ended:
        benchmarking.run(lambda: 3)
    assert ended.value.code == 3


def test_workers_double_up_to_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert benchmarking.worker_counts() == [0, 1, 2, 4]
