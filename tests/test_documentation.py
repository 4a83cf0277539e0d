"""The documentation: its commands are those of the program, its example runs, its site builds."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT
from made_pairs import write_noise_pair

from ea_psmnet.__main__ import main, parse

PAGES = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAM = re.compile(r"^(ea-psmnet|(\.venv/bin/)?python -m ea_psmnet) ")


def shell_lines(page):
    """Lines of the shell blocks of a page; those that go on in the next line are joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def commands(page):
    for line in shell_lines(page):
        if PROGRAM.match(line):
            words = shlex.split(line, comments=True)
            yield words[words.index("ea_psmnet") + 1 if "ea_psmnet" in words else 1 :]


COMMANDS = sorted({tuple(words) for page in PAGES for words in commands(page)})


def test_the_documentation_shows_commands():
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_exist_with_their_options(words):
    if words != ("--version",):
        assert callable(parse(list(words)))


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http", "data:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_first_pair(tmp_path, monkeypatch, capsys):
    """The commands and the Python example of the first page, as a reader runs them."""
    pair = write_noise_pair(tmp_path / "pair", np.random.default_rng(0), (48, 224), 8)
    for view in ("left", "right"):
        (pair / f"{view}.png").rename(tmp_path / f"{view}.png")
    monkeypatch.chdir(tmp_path)
    index = ROOT / "docs" / "index.md"
    (predict,) = (words for words in commands(index) if words[0] == "predict")
    assert main(predict) == 0
    written = {path.name.removeprefix(tmp_path.name) for path in (tmp_path / "depth").iterdir()}
    named = set(re.findall(r"`depth/NAME(\w+\.\w+)`", index.read_text()))
    assert written == named
    capsys.readouterr()
    (example,) = re.findall(r"^```python\n(.*?)^```", index.read_text(), re.M | re.S)
    exec(compile(example, "docs/index.md", "exec"), {})
    assert "(48, 224)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "api" / "index.html").is_file()
    assert "float16" in (tmp_path / "weights" / "index.html").read_text()
