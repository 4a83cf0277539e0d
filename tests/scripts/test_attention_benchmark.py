"""The benchmark's measurements and its table; never its times."""

import io
import json
from dataclasses import asdict

import attention_benchmark as benchmark
import pytest
import torch
from attention_benchmark import Case, Floor, Measurement
from benchmarking import Answers, run
from torch.utils._python_dispatch import TorchDispatchMode

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.machine import choose_device
from ea_psmnet.ops import streaming
from ea_psmnet.training.memory import LiveBytes

CPU = torch.device("cpu")
LARGE = Case(32, (48, 136, 240), 16, backward=True, keep_memory=False)


def small(backward, published=False):
    return Case(8, (2, 32, 64), 4, backward, keep_memory=False, published=published)


def test_output_and_gradient_are_never_held_at_once(monkeypatch):
    """The output is let go before the backward: the peak is one tensor of the input's size."""
    monkeypatch.setattr(streaming, "_CHUNK_FLOATS", 1)
    case = small(backward=True)
    step = benchmark._step(EfficientAttention(8, key_channels=4), case, CPU)
    with LiveBytes() as allocations:
        step()
    assert case.tensor_bytes <= allocations.peak < 1.3 * case.tensor_bytes


@pytest.mark.parametrize("backward", [True, False])
def test_the_step_is_the_modules_pass(backward):
    module = EfficientAttention(8, key_channels=4, start="published")
    torch.manual_seed(5)
    result = benchmark._step(module, small(backward), CPU)()
    torch.manual_seed(5)
    x = benchmark._volume(small(backward), CPU).requires_grad_(backward)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    if not backward:
        torch.testing.assert_close(result, module(x).detach())
        return
    arriving = benchmark._volume(small(backward), CPU)
    expected = torch.autograd.grad(module(x), [x, *module.parameters()], arriving)
    for a, e in zip(result, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_unavoidable_traffic_and_arithmetic():
    """Three tensors of 200.5 MB at 1 GB/s, and 4 x 32 x 16 multiply-adds a position."""
    floor = Floor(bytes_per_second=1e9, operations_per_second=1e9)
    forward = Case(**asdict(LARGE) | {"backward": False})
    n = 48 * 136 * 240
    assert LARGE.tensor_bytes == 4 * 32 * n
    assert floor.traffic(forward) == pytest.approx(3 * 4 * 32 * n / 1e9)
    assert floor.traffic(LARGE) == pytest.approx(8 * 4 * 32 * n / 1e9)
    assert floor.arithmetic(forward) == pytest.approx(2 * 4 * 32 * 16 * n / 1e9)
    assert floor.arithmetic(LARGE) == pytest.approx(2 * 14 * 32 * 16 * n / 1e9)
    half = Case(**asdict(forward) | {"dtype": "bfloat16"})
    assert floor.traffic(half) == floor.traffic(forward) / 2


def test_a_card_multiplies_float32_in_parts_and_recomputes_more():
    floor = Floor(bytes_per_second=1e9, operations_per_second=1e9, on_gpu=True)
    product = 2 * 32 * 16 * 48 * 136 * 240 / 1e9
    assert floor.arithmetic(LARGE) == pytest.approx((3 * 4 + 1.5 * 12) * product)
    half = Case(**asdict(LARGE) | {"dtype": "bfloat16"})
    assert floor.arithmetic(half) == pytest.approx((4 + 12) * product)


def test_arithmetic_is_what_the_backward_multiplies():
    """Ten products of C x d_k a position, counted."""
    counted = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal counted
            name = func.overloadpacket.__name__
            if name in ("mm", "addmm", "addmm_"):
                a, b = args[-2:]
                counted += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            return func(*args, **(kwargs or {}))

    case = small(backward=True)
    step = benchmark._step(EfficientAttention(8, key_channels=4), case, CPU)
    with Count():
        step()
    expected = Floor(1, 1).arithmetic(case)
    assert counted == pytest.approx(expected, rel=0.01)


def test_a_child_answers_with_what_it_measured(monkeypatch, tmp_path):
    """Both ends of the conversation between processes, in this one."""

    monkeypatch.setattr("sys.argv", ["benchmark", "--answer"])

    def converse(request):
        answer = io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
        monkeypatch.setattr("sys.stdout", answer)
        run(pytest.fail, benchmark.answer)
        return json.loads(answer.getvalue())

    monkeypatch.setattr(benchmark, "measured", converse)
    record = benchmark._measure_pair(small(backward=True), Answers(tmp_path / "kept", {}))
    assert Case(**record["case"]) == small(backward=True)
    for form in ("published", "fast"):
        measured = Measurement(**record[form])
        assert measured.seconds > 0
        assert measured.peak >= 0


def test_a_benchmark_that_was_stopped_goes_on(monkeypatch, tmp_path):
    """Stopped at the fourth of its measurements, it asks for that and for the rest."""
    asked = []

    def stand_in(request):
        asked.append(request)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return asdict(Measurement(1.0, 1) if request else Floor(1e9, 1e9))

    monkeypatch.setattr(benchmark, "measured", stand_in)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(tmp_path / "b")
    benchmark.main(tmp_path / "b")
    assert len(asked) == 1 + 1 + 2 * len(benchmark._cases(torch.device(choose_device("auto"))))
    assert asked[3] == asked[4]
    assert "in 2 sittings" in (tmp_path / "b.md").read_text()
    assert not (tmp_path / "b.unfinished").exists()


def test_the_table_holds_ratios_and_floors():
    records = [
        {
            "case": asdict(LARGE),
            "published": asdict(Measurement(1.0, 4 * 2**30)),
            "fast": asdict(Measurement(0.25, 2**30)),
        }
    ]
    text = benchmark._report(records, Floor(8 * LARGE.tensor_bytes / 0.125, 1e12), "a machine")
    header, _, row = (line for line in text.splitlines() if line.startswith("|"))
    names, cells = ([cell.strip() for cell in line.split("|")] for line in (header, row))
    values = dict(zip(names, cells, strict=True))
    assert values["times faster"] == "4.00"
    assert values["traffic ms"] == "125.0"
    assert values["fast / traffic"] == "2.00"
    assert values["memory ratio"] == "0.25"
    assert values["memory floor"] == "191.2 MiB"


def test_on_a_card_there_is_one_allocator_and_half_precision():
    on_cpu, on_gpu = (benchmark._cases(torch.device(name)) for name in ("cpu", "cuda"))
    assert {(c.dtype, c.keep_memory) for c in on_cpu} == {("float32", False), ("float32", True)}
    assert {(c.dtype, c.keep_memory) for c in on_gpu} == {("float32", False), ("bfloat16", False)}
    for cases in (on_cpu, on_gpu):
        assert len(cases) == len(set(cases)) == 24
