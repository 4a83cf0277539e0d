import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from command_line import ROOT

from ea_psmnet import machine
from ea_psmnet.machine import (
    choose_device,
    has_fast_bfloat16,
    held_bytes,
    peak_bytes,
    use_threads,
)


def test_auto_takes_what_is_there():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said_to_be_missing():
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_device("cuda")


def test_the_probe_agrees_with_the_processors_flags(monkeypatch, tmp_path):
    probe = "ea_psmnet.machine.Path"
    for flags, expected in (("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)):
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"flags : {flags}\n")
        monkeypatch.setattr(probe, lambda _, file=cpuinfo: file)
        assert has_fast_bfloat16("cpu") is expected


def test_a_forked_worker_can_use_opencv_with_its_one_thread():
    script = """
import multiprocessing, cv2, numpy
from ea_psmnet.machine import single_opencv_thread

def blur(_):
    cv2.GaussianBlur(numpy.ones((2000, 2000), numpy.float32), (31, 31), 5)
    return cv2.getNumThreads()

cv2.setNumThreads(4)
single_opencv_thread()
blur(0)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(blur, [0])[0])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert ended.stdout.strip() == b"1", ended.stderr


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_child_does_not_outlive_a_signal(number):
    if not hasattr(signal, number):
        pytest.skip("this system has no such signal")
    number = getattr(signal, number)
    script = """
import subprocess, sys
from ea_psmnet.machine import ending_children

with ending_children():
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    subprocess.run([sys.executable, "-c", child])
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_nohup_stays_in_force():
    script = """
import os, signal
from ea_psmnet.machine import ending_children

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ending_children():
    os.kill(os.getpid(), signal.SIGHUP)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends programs without a signal")
def test_sigterm_in_a_destructor_ends_the_program():
    script = """
import os, signal, time
from ea_psmnet.machine import ending_children

class Ended:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

with ending_children():
    Ended()
    time.sleep({})
"""
    for seconds in (0, 20):  # the block ends before the signal is sent again, or does not
        program = [sys.executable, "-c", script.format(seconds)]
        ended = subprocess.run(program, capture_output=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (143, b"")


def openmp(script, **settings):
    """What OpenMP tells of its settings as it is loaded, and what the script prints."""
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env | {"OMP_DISPLAY_ENV": "VERBOSE"} | settings,
        capture_output=True,
        text=True,
        check=True,
    )


ALONE = """
import ctypes, importlib.util
from pathlib import Path
import ea_psmnet
(torch,) = importlib.util.find_spec("torch").submodule_search_locations
(library,) = Path(torch, "lib").glob("libgomp*")
ctypes.CDLL(str(library))
"""
"""Loads torch's OpenMP without torch."""

COMPILED = """
from pathlib import Path
from ea_psmnet.ops.native.winograd import is_compiled_for
import torch
torch.ones(8, 8) @ torch.ones(8, 8)
is_compiled_for(32, 32)
lines = Path("/proc/self/maps").read_text().splitlines()
print(*{line.split()[-1] for line in lines if "gomp" in line}, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
def test_threads_that_wait_soon_sleep():
    told = openmp(COMPILED)
    assert "GOMP_SPINCOUNT = '5000'" in told.stderr
    assert told.stderr.count("GOMP_SPINCOUNT") == 1  # one library: torch's and compiled code's
    assert len(told.stdout.split()) == 1
    # Who asks for something gets it.
    for asked, count in (({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")):
        assert f"GOMP_SPINCOUNT = '{count}'" in openmp(ALONE, **asked).stderr
    spinning = openmp(ALONE, OMP_WAIT_POLICY="ACTIVE").stderr
    assert "GOMP_SPINCOUNT" in spinning
    assert "GOMP_SPINCOUNT = '5000'" not in spinning


def test_threads_are_those_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    use_threads(None)
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (before, "7")
    use_threads(1)
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (1, "1")
    torch.set_num_threads(before)
    for count in (0, -1, 10**12):
        with pytest.raises(ValueError, match="expected 1 to 1024"):
            use_threads(count)


def test_free_memory_is_the_least_of_all_control_groups_and_counts_caches(tmp_path):
    def group(path, limit, used, cached):
        folder = tmp_path / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")

    assert machine._free_in_groups(tmp_path) == 2**63
    group("job", 1000, 900, 300)
    group("job/step", "max", 900, 0)
    assert machine._free_in_groups(tmp_path) == 2**63  # that of another program
    own = tmp_path / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text("1:name=systemd:/\n0::/job/step\n")
    assert machine._free_in_groups(tmp_path) == 400
    group("job/step", 950, 900, 0)
    assert machine._free_in_groups(tmp_path) == 50


@pytest.mark.slow
def test_free_memory_respects_the_limits_of_the_process():
    """One after the other: each is lifted again."""
    code = """
import resource, torch
from ea_psmnet.machine import available_memory
for limit, place in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
    before = resource.getrlimit(limit)
    held = int(open("/proc/self/statm").read().split()[place]) * resource.getpagesize()
    resource.setrlimit(limit, (held + 2**26, before[1]))
    print(available_memory(torch.device("cpu")))
    resource.setrlimit(limit, before)
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [int(line) for line in run.stdout.split()]
    assert len(found) == 2
    assert all(2**25 < each <= 2**26 for each in found)


def test_the_peak_is_that_of_the_process(monkeypatch):
    """From /proc, or from getrusage, which counts in KiB, or in bytes on macOS."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = torch.device("cpu")
    held = held_bytes(device)
    assert peak_bytes(device) + 2**20 >= held > 2**20  # Linux counts pages in batches
    monkeypatch.setattr(machine.Path, "is_file", lambda path: False)
    for system, unit in (("linux", 2**10), ("darwin", 1)):
        monkeypatch.setattr(machine.sys, "platform", system)
        assert peak_bytes(device) == pytest.approx(most * unit, rel=0.1)
    with pytest.raises(OSError, match="measured on Linux"):
        held_bytes(device)
