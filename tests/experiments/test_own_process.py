"""Processes of their own, and what becomes of them."""

import io
import runpy
import subprocess
import sys
import time

import pytest
from command_line import ROOT, alive, wait_for

from ea_psmnet.experiments.own_process import run_program

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


SAVING = """
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(1)
    Path(sys.argv[1]).write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(120)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_child_has_time_to_save_when_sigterm_ends_its_parent(tmp_path):
    program, saved = tmp_path / "saving.py", tmp_path / "saved"
    program.write_text(SAVING)
    code = "from ea_psmnet.experiments.own_process import run_program\n"
    code += f"run_program({str(program)!r}, [{str(saved)!r}])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    parent.terminate()
    assert parent.wait(30) == 143
    assert saved.read_text() == "saved"


def test_a_child_whose_time_is_up_is_killed():
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_program("timeit", ["-n", "1", "-r", "1", "import time; time.sleep(60)"], timeout=1)
    assert time.monotonic() - start < 30


def test_a_child_whose_parent_has_ended_does_not_start():
    command = [sys.executable, "-m", "ea_psmnet.experiments.own_process", "1", "this"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: process 1, which started this one, has ended\n"


def test_a_trial_that_is_asked_for_nonsense_says_so_in_one_line(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "ea_psmnet/experiments/trial.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capfd.readouterr() == ("", "error: standard input: trial is missing\n")
