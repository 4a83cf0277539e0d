import pytest

from ea_psmnet.console import exit_code


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
