import subprocess
import sys

import pytest
from command_line import ROOT, command, run_command

from ea_psmnet.console import exit_code, without_empty_defaults


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (lambda: None, 0),
        (lambda: "a result", 0),
        (lambda: 1, 1),
        (lambda: raise_(KeyboardInterrupt()), 130),
    ],
)
def test_a_result_may_be_the_code(program, code, capsys):
    assert exit_code(program) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_bad_input_is_one_line(kind, capsys):
    assert exit_code(lambda: raise_(kind("x.png: no image"))) == 2
    assert capsys.readouterr() == ("", "error: x.png: no image\n")


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
def test_help_is_without_noise(line):
    told = run_command(*line.split(), "--help").stdout
    assert f"usage: python -m ea_psmnet {line} " in told
    assert "None" not in told
    assert "(default: )" not in told
    assert "--no-align-corners" not in told  # it takes True or False


def test_an_unknown_option_leads_to_the_commands_own_help():
    for line in ("predict l.png r.png --out o --max-disp 3", "data show d --out o --nam eth3d"):
        told = run_command(*line.split())
        assert told.returncode == 2
        name = line.split(" d ")[0].split(" l.png")[0]
        assert "Perhaps you meant" in told.stderr
        assert f"python -m ea_psmnet {name} --help" in told.stderr
        assert "python predict" not in told.stderr
