"""`scripts/environment`, with a pip that only tells what it was asked for."""

import os
import shutil
import subprocess

import pytest
from command_line import ROOT

PYTHON = """#!/bin/sh
echo "$@" >> installed
"""


@pytest.fixture
def clone(tmp_path):
    """Where the script can be run without installing anything."""
    for name in ("scripts/environment", "requirements.txt", "tests/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def install(clone, **settings):
    """What pip was asked for, a call a line, and what the script said."""
    env = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"} | settings
    line = ["scripts/environment", "tests/requirements.txt"]
    said = subprocess.run(line, cwd=clone, env=env, capture_output=True, text=True, check=True)
    asked = (clone / "installed").read_text().splitlines()
    prefix = "-m pip install --quiet --disable-pip-version-check "
    return [call.removeprefix(prefix) for call in asked], said.stderr


def test_everything_comes_from_pips_own_index_and_once(clone):
    asked, said = install(clone)
    assert asked == ["-r tests/requirements.txt"]
    assert "6 GB with CUDA builds of torch; TORCH_INDEX=cpu takes 1.5" in said
    assert install(clone) == (asked, "")


@pytest.mark.parametrize(
    ("line", "settings", "message"),
    [
        ([], {}, "a requirements file is needed"),
        (["requirements.txt"], {"PYTHON": "no-python"}, "error: no-python: no such program"),
    ],
)
def test_what_is_missing_is_told(clone, line, settings, message):
    said = subprocess.run(
        ["scripts/environment", *line],
        cwd=clone, env=os.environ | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode > 0
    assert message in said.stderr
    assert said.stderr.count("\n") == 1


def test_torch_may_come_from_another_index(clone):
    asked, _ = install(clone, TORCH_INDEX="cpu")
    torch = [
        line for line in (ROOT / "requirements.txt").read_text().split() if line.startswith("torch")
    ]
    assert asked == [
        f"--index-url https://download.pytorch.org/whl/cpu {' '.join(torch)}",
        "-r tests/requirements.txt",
    ]
    assert [line.split(">")[0] for line in torch] == ["torch", "torchvision"]
