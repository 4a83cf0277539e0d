"""The program on systems other than Linux, simulated: what they lack is taken away.

No machine of those systems has run it; `docs/portability.md` says so.
"""

import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT
from made_pairs import write_noise_pair

# Libraries are imported first, because they look at the system, too.
WINDOWS = """
import signal, sys
import accelerate, cv2, matplotlib.figure, psutil, tyro
import torch.distributed.elastic.multiprocessing, torch.utils.tensorboard
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGHUP"):
    delattr(signal, name)
class Process:
    def memory_info(self):
        return type("Info", (), {"rss": 2**30, "peak_wset": 2**30})
psutil.Process = Process
sys.platform = "win32"
"""
MACOS = """
import sys
import accelerate, cv2, matplotlib.figure, psutil, tyro
import torch.distributed.elastic.multiprocessing, torch.utils.tensorboard
sys.platform = "darwin"
"""
RUN = """
import platform
from pathlib import Path
platform.libc_ver = lambda *_: ("", "")
is_file = Path.is_file
Path.is_file = lambda self: not str(self).startswith(("/proc", "/sys")) and is_file(self)
from ea_psmnet import machine, ops
from ea_psmnet.__main__ import main
from ea_psmnet.ops.native import load_library
assert load_library(Path("x.c"), (), 1) is None, "compiled"
assert not machine.keep_freed_memory()
assert not machine.has_fast_bfloat16("cpu")
sys.exit(main(sys.argv[1:]))
"""


def run_on(system, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", system + RUN, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_predict(system, tmp_path):
    pair = write_noise_pair(tmp_path / "noise", np.random.default_rng(0), (40, 224), 8)
    run_on(system, "predict", *(pair / f"{view}.png" for view in ("left", "right")),
           "--out", tmp_path / "out")  # fmt: skip
    assert (tmp_path / "out" / "noise_disparity.pfm").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_train(system, tmp_path):
    write_noise_pair(tmp_path / "pairs" / "noise", np.random.default_rng(0), (64, 96), 8)
    run_on(system, "train", "--data", "folder", "--root", tmp_path / "pairs", "--crop", 64, 96,
           "--max-disparity", 16, "--preset", "light", "--no-imagenet", "--batch", 1,
           "--epochs", 1, "--steps", 2, "--workers", 0, "--out", tmp_path / "run")  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_every_guard_is_needed():
    """The modules that Windows lacks are imported only where their absence is handled."""
    guarded = {"atomic.py", "training/run_folder.py", "machine.py", "experiments/measure.py"}
    package = ROOT / "ea_psmnet"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if {"import fcntl", "import resource"}
        & {line.strip() for line in path.read_text().splitlines()}
    }
    assert found == guarded
