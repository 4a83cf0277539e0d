"""A run folder belongs to one process at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training.tiny import FACTS, TINY

from ea_psmnet.training import run_folder
from ea_psmnet.training.loop import train
from ea_psmnet.training.record import RunRecord
from ea_psmnet.training.run_folder import claimed, describe_environment, read_sessions

HOLDER = """
import os, sys, time
from pathlib import Path
from ea_psmnet.training.run_folder import _locked
with _locked(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(300)
"""
"""As a run with a loader worker does, which outlives it when it is killed."""


@pytest.fixture
def holder(config):
    """A process that has the folder of `config`, and its worker's number."""
    config.out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, config.out / ".lock"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(worker, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_folder_that_another_process_trains_in_is_refused_until_it_is_gone(config, holder):
    """Also while what it forked lives on."""
    with pytest.raises(ValueError, match=f"process {holder.pid} on .* is training in it") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert [path.name for path in config.out.iterdir()] == [".lock"]
    holder.kill()
    holder.wait(timeout=60)
    assert train(config).is_file()


def test_a_run_gives_its_folder_back_at_its_end(config):
    for _ in range(2):
        with claimed(config, TINY, [6]):
            assert free(config.out / ".lock") == "held"
        assert free(config.out / ".lock") == "free"


def free(path):
    """What another process finds; this one would take its own lock once more."""
    code = (
        "import fcntl, sys\n"
        "try:\n    fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    print('free')\nexcept BlockingIOError:\n    print('held')\n"
    )
    asked = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    return asked.stdout.strip()


def test_a_file_system_without_locks_is_used_without(config, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with claimed(config, TINY, [6]):
        assert (config.out / "config.json").is_file()


# environment.json ---------------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_revision_is_that_of_the_clone_and_changes_show(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("one")
    git(tmp_path, "init")
    assert run_folder._git_state(program) == (None, None)  # of another project so far
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    revision, dirty = run_folder._git_state(program)
    head = (tmp_path / ".git" / (tmp_path / ".git/HEAD").read_text().split()[1]).read_text()
    assert (revision, dirty) == (head.strip(), False)
    (tmp_path / "results").write_text("not part of the program")
    assert run_folder._git_state(program)[1] is False
    program.write_text("two")
    assert run_folder._git_state(program) == (revision, True)


def test_without_git_the_revision_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = describe_environment()
    assert (told["revision"], told["dirty"]) == (None, None)
    assert told["libraries"]["torch"].startswith(__import__("torch").__version__.split("+")[0])
    assert told["processor"]


@pytest.mark.parametrize("damaged", ["{", "{}", "[1, null]", "[" * 10**5])
def test_a_damaged_file_is_told_in_one_line_and_begins_anew(tmp_path, damaged):
    path = tmp_path / "environment.json"
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"environment.json: .*; damaged") as told:
        read_sessions(path)
    assert "\n" not in str(told.value)
    with pytest.warns(UserWarning, match="damaged; it begins anew"):
        run_folder.record_session(path, {"steps": 5})
    run_folder.record_session(path, {"steps": 5})
    assert [session["steps"] for session in read_sessions(path)] == [5, 5]


def test_a_finished_run_ends_well_though_the_file_is_damaged(config, capsys):
    run = replace(config, steps=1)
    train(run)
    (config.out / "environment.json").write_text("[")
    capsys.readouterr()
    assert train(run).is_file()
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "warning" in x)
    assert "no summary" in line
    assert "environment.json" in line


def test_what_rounds_otherwise_than_before_is_told(tmp_path, capsys, monkeypatch):
    """Threads, as by OMP_NUM_THREADS, and compiled code, as by EA_PSMNET_COMPILE."""
    told = describe_environment()
    changed = told | {"threads": told["threads"] + 1, "compiled": "nothing"}
    for start, described in ((0, told), (2, told), (3, changed), (4, changed)):
        monkeypatch.setattr(run_folder, "describe_environment", lambda now=described: now)
        with RunRecord(tmp_path, start, 6, FACTS):
            pass
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "warning" in x)
    assert f"continues with threads {changed['threads']} instead of {told['threads']}, comp" in line
    described = run_folder.record_session(tmp_path / "environment.json", FACTS | {"processes": 7})
    assert described == f"processes 7 instead of {FACTS['processes']}"
    (tmp_path / "environment.json").write_text("[{}]")  # an older run's tells less
    assert run_folder.record_session(tmp_path / "environment.json", {}) == ""


@pytest.mark.slow
def test_settings_that_round_otherwise_are_recorded():
    code = "from ea_psmnet.training.run_folder import describe_environment as d; print(d())"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "EA_PSMNET_COMPILE": "0"},
        capture_output=True,
        text=True,
    )
    assert "'threads': 1, 'compiled': 'nothing'" in ended.stdout
