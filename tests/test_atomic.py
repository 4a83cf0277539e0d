"""What writes that were killed leave behind, and what nobody may take for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ea_psmnet.atomic import atomic_path, remove_leftovers, remove_own

USERS = [
    *(".my.private.notes.md", ".vscode.settings.json", ".a.b.png", ".hidden", "thesis.txt"),
    *(".ea_psmnet-notes.txt", f".ea_psmnet-{'0' * 31}.png", f".ea_psmnet-{'g' * 32}.png"),
    f"ea_psmnet-{'0' * 32}.png",
]
"""Names of files that are none of ours, however alike."""

WRITER = """
import sys, time
from ea_psmnet.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writing(tmp_path):
    """A process in the midst of writing `tmp_path / "map.png"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "map.png"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_write_leaves_a_file_that_the_next_write_removes(tmp_path, writing):
    for name in USERS:
        (tmp_path / name).touch()
    (tmp_path / f".ea_psmnet-{'0' * 32}").mkdir()
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    assert len(names(tmp_path)) == len(USERS) + 2
    with atomic_path(tmp_path / "other.png") as temporary:
        temporary.touch()
    assert names(tmp_path) == sorted([*USERS, f".ea_psmnet-{'0' * 32}", "other.png"])


def test_a_file_that_another_process_is_writing_stays(tmp_path, writing):
    remove_leftovers(tmp_path)
    (unfinished,) = tmp_path.iterdir()
    assert unfinished.read_text() == "half"


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_file_that_was_removed_before_its_lock_is_made_again(tmp_path, monkeypatch):
    """As by another process that looked between the two."""
    import fcntl

    flock, calls = fcntl.flock, []

    def late(file, how):
        calls.append(how)
        if len(calls) == 1:
            os.unlink(file.name)  # noqa: PTH108
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_path(tmp_path / "map.png") as temporary:
        assert temporary.exists()
    assert names(tmp_path) == ["map.png"]
    assert len(calls) == 2


def test_a_folder_of_ours_goes_and_what_a_user_has_put_there_stays(tmp_path):
    folder = tmp_path / "unfinished"
    remove_own(folder, ".*")
    folder.mkdir()
    (folder / "000012.json.gz").touch()
    (folder / f".ea_psmnet-{'0' * 32}.gz").touch()
    (folder / "thesis.txt").touch()
    remove_own(folder, r"\d{6}\.json\.gz")
    assert names(folder) == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    remove_own(folder, r"\d{6}\.json\.gz")
    assert not folder.exists()
