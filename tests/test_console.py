import cv2
import pytest
import torch

from ea_psmnet.console import exit_code, is_out_of_memory


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
