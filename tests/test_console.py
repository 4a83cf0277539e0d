import os
import signal
import subprocess
import sys
import time

import cv2
import pytest
import torch
from command_line import ROOT, command
from tqdm import tqdm

from ea_psmnet.__main__ import main
from ea_psmnet.console import exit_code, is_out_of_memory, without_empty_defaults


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (lambda: None, 0),
        (lambda: "a result", 0),
        (lambda: 1, 1),
    ],
)
def test_a_result_may_be_the_code(program, code, capsys):
    assert exit_code(program) == code
    assert capsys.readouterr() == ("", "")


def test_a_missing_package_is_told_in_one_line(capsys):
    def program():
        import a_package_that_is_not_there  # noqa: F401

    assert exit_code(program) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No module named 'a_package_that_is_not_there': ")
    assert error.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):  # one of ours: the installation is broken
        exit_code(lambda: raise_(ModuleNotFoundError("no", name="ea_psmnet.nothing")))


@pytest.mark.parametrize(
    ("number", "line", "code"),
    [(signal.SIGTERM, "stopped by SIGTERM\n", 143), (signal.SIGINT, "stopped by Ctrl-C\n", 130)],
)
def test_a_signal_cleans_up_and_is_told(number, line, code, capsys):
    done = []

    def program():
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            done.append("cleaned up")

    # A shell that starts the tests in the background has SIGINT ignored.
    own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, own)
    try:
        assert exit_code(program) == code
        assert signal.getsignal(number) == own
    finally:
        signal.signal(number, before)
    assert done == ["cleaned up"]
    assert capsys.readouterr() == ("", line)


def test_a_parsers_exit_is_its_own():
    with pytest.raises(SystemExit, match="2"):
        exit_code(lambda: sys.exit(2))


def test_an_error_stands_on_a_line_of_its_own(capsys):
    bars = []

    def program():
        bars.append(tqdm(total=3))
        bars[0].update()
        raise ValueError("x.png: no image")

    assert exit_code(program) == 2
    assert capsys.readouterr().err.endswith("\nerror: x.png: no image\n")


def test_one_process_of_a_launch_tells_of_an_error_first(monkeypatch, capsys):
    """The launcher ends the others before they tell the same, unless they alone have failed."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert exit_code(lambda: raise_(ValueError("x.png: no image"))) == 2
    assert waited == [3.0]
    assert capsys.readouterr().err == "error: x.png: no image\n"


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_bad_input_is_one_line(kind, capsys):
    assert exit_code(lambda: raise_(kind("x.png: no image"))) == 2
    assert capsys.readouterr() == ("", "error: x.png: no image\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried\nto"),
        RuntimeError("could not create a memory object"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        cv2.error("(-4:Insufficient memory) Failed to allocate 120000000 bytes"),
    ],
)
def test_memory_that_is_refused_is_one_line(error, capsys):
    assert exit_code(lambda: raise_(error)) == 2
    out, told = capsys.readouterr()
    assert (out, told.count("\n")) == ("", 1)
    assert told.startswith("error: out of memory: close other programs")
    assert (str(error).partition("\n")[0] or "MemoryError") in told


def test_torchs_own_refusal_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(KeyError):
        exit_code(lambda: raise_(KeyError("x")))


def test_the_systems_errors_begin_with_the_file(tmp_path, capsys):
    assert exit_code(lambda: (tmp_path / "none").read_text()) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: No such file or directory\n"


def test_empty_defaults_are_left_out_and_frames_kept(capsys):
    def show_help():
        print("│ a size (default: ) │\n│ a path (default:   │\n│ None)              │")
        print("(default: 3)", file=sys.stderr)
        sys.exit()

    with pytest.raises(SystemExit), without_empty_defaults():
        show_help()
    told = capsys.readouterr()
    assert told.out == "│ a size             │\n│ a path             │\n│                    │\n"
    assert told.err == "(default: 3)\n"


def test_who_stops_reading_hears_no_complaint():
    line = f"set -o pipefail; {' '.join(command('evaluate', '--help'))} | head -n 1"
    ended = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.startswith("usage: python -m ea_psmnet evaluate")
    assert ended.stderr == ""


@pytest.mark.parametrize("line", ["predict", "evaluate", "data show", "resources", "train"])
def test_help_is_without_noise(line, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*line.split(), "--help"])
    told = capsys.readouterr().out
    assert f"usage: python -m ea_psmnet {line} " in told
    assert "None" not in told
    assert "(default: )" not in told
    assert "--no-align-corners" not in told  # it takes True or False


def test_an_unknown_option_leads_to_the_commands_own_help(capsys):
    for line in ("predict l.png r.png --out o --max-disp 3", "data show d --out o --dat eth3d"):
        with pytest.raises(SystemExit, match="2"):
            main(line.split())
        told = capsys.readouterr().err
        name = line.split(" d ")[0].split(" l.png")[0]
        assert "Perhaps you meant" in told
        assert f"python -m ea_psmnet {name} --help" in told
        assert "python predict" not in told
