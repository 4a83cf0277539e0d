import io
import time

import pytest

from ea_psmnet import progress
from ea_psmnet.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.05)


def test_without_a_terminal_there_are_whole_lines(often):
    stream = io.StringIO()
    for _ in Progress(range(8), desc="work", file=stream):
        time.sleep(0.03)
    text = stream.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert 2 <= len(lines) < 8
    assert text.endswith("\n")
    assert all(line.startswith("work: ") for line in lines)
    assert "8/8" in lines[-1]


def test_short_work_says_nothing_without_a_terminal():
    stream = io.StringIO()
    assert list(Progress(range(3), file=stream)) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_that_is_drawn_over_itself():
    stream = Terminal()
    list(Progress(range(3), file=stream))
    assert stream.getvalue().count("\r") >= 2
    assert "3/3" in stream.getvalue()


def test_a_hidden_bar_is_silent(often):
    for stream in (io.StringIO(), Terminal()):
        with Progress(range(3), file=stream, disable=True) as bar:
            list(bar)
        assert stream.getvalue() == ""


def test_lines_are_not_repeated_after_other_text(often, capsys):
    stream, other = io.StringIO(), io.StringIO()
    with Progress(total=2, file=stream) as bar:
        time.sleep(0.06)
        bar.update()
        for _ in range(3):
            Progress.write("text", file=other)
    assert other.getvalue() == "text\n" * 3
    assert stream.getvalue().count("1/2") == 1
