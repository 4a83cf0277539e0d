"""What is installed: the lists in pyproject.toml, and a wheel in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from command_line import ROOT
from made_pairs import write_noise_pair

from ea_psmnet import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("ea_psmnet/**/__init__.py")}
    folders |= {path.parent.relative_to(ROOT) for path in ROOT.glob("datasets/**/__init__.py")}
    names = {".".join(folder.parts) for folder in folders}
    names = {f"ea_psmnet.{name}" if name.startswith("datasets") else name for name in names}
    assert sorted(names | {"ea_psmnet.checkpoints"}) == SETUPTOOLS["packages"]


def test_requirements_are_those_of_the_project():
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    listed = sorted(project["dependencies"] + extras["train"] + extras["app"])
    assert (ROOT / "requirements.txt").read_text().splitlines() == listed
    tested = (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    assert set(extras["export"] + extras["docs"]) < set(tested)


def test_the_citation_has_the_version_and_the_licence():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.M)[1] == __version__
    assert re.search(r"^license: (.*)$", text, re.M)[1] == PROJECT["project"]["license"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_wheel_predicts_outside_of_the_clone(tmp_path):
    """Installed without its dependencies, which are taken from this environment."""
    source = tmp_path / "source"  # setuptools leaves what it builds beside the sources
    for name in ("ea_psmnet", "datasets", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, "."], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "ea_psmnet",
        f"ea_psmnet-{__version__}.dist-info",
    }
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", site, wheel], check=True)
    pair = write_noise_pair(tmp_path / "noise", np.random.default_rng(0), (40, 224), 8)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    program = site / "bin" / "ea-psmnet"
    assert run(sys.executable, program, "--version").strip() == __version__
    run(sys.executable, program, "predict", pair / "left.png", pair / "right.png", "--out", "out")
    assert (tmp_path / "out" / "noise_disparity.pfm").is_file()
    where = "import ea_psmnet.datasets.synthetic as s; print(s.__file__)"
    info = "from ea_psmnet.__main__ import main; main(['info'])"
    told, *described = run(sys.executable, "-c", f"{where}; {info}").splitlines()
    assert str(site) in told
    assert "intact" in described[-1]
