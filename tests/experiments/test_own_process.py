"""Processes of their own, and what becomes of them."""

import subprocess
import sys

import pytest
from command_line import ROOT, alive, wait_for

PARENT = """
import sys
from ea_psmnet.experiments.own_process import run_program
code = "import os, time; print(os.getpid(), flush=True); time.sleep(120)"
run_program("timeit", ["-n", "1", "-r", "1", code], stdout=sys.stdout)
"""


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
    wait_for(lambda: not alive(child))


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
