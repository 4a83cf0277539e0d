"""Processes of their own, and what becomes of them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
from ea_psmnet.experiments.own_process import run_program
code = "import os, time; print(os.getpid(), flush=True); time.sleep(120)"
run_program("timeit", ["-n", "1", "-r", "1", code], stdout=sys.stdout)
"""


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends them")
@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_child_ends_with_its_parent_however_that_ends(signal):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    assert alive(child)
    subprocess.run(["kill", f"-{signal}", str(parent.pid)], check=True)
    parent.wait(30)
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_a_child_whose_parent_has_ended_does_not_start():
    command = [sys.executable, "-m", "ea_psmnet.experiments.own_process", "1", "this"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: process 1, which started this one, has ended\n"


@pytest.mark.slow
def test_a_trial_that_is_asked_for_nonsense_says_so_in_one_line():
    command = [sys.executable, "-m", "ea_psmnet.experiments.trial"]
    run = subprocess.run(command, cwd=ROOT, input="{}", capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: standard input: trial is missing\n"
