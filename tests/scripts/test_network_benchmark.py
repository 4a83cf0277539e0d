"""The network benchmark at tiny sizes, in one process; never its times."""

import gzip
import json
from dataclasses import asdict, replace

import network_benchmark as benchmark
import pytest
import torch
from network_benchmark import BenchmarkOptions, Sizes
from network_cases import STEPS, Accuracy, NetworkCase, NetworkFloor, NetworkMeasurement
from network_report import NetworkResults, Record, benchmark_markdown

from ea_psmnet.machine import choose_device
from ea_psmnet.models.config import preset

DEVICE = torch.device(choose_device("auto"))
FLOOR = NetworkFloor(1e9, {"float32": 1e9, "bfloat16": 2e9}, {"float32": 3e9, "bfloat16": 1e9})
TINY = Sizes(
    inference=((16, 64),),
    pixels=((16, 32),),
    disparities=(48,),
    training=(((16, 32), 48),),
    batches=(1, 2),
    networks=("psmnet-small",),
)


@pytest.mark.slow
def test_a_whole_run_measures_every_case_and_writes_all(monkeypatch, tmp_path):
    monkeypatch.setattr("network_cases.keep_freed_memory", lambda: True)
    monkeypatch.setattr("network_cases.preset", lambda name: replace(preset(name), width=0.5))

    def here(request):
        if "floor" in request:
            return {"bytes_per_second": 1e9, "matmul": FLOOR.matmul, "conv3d": FLOOR.conv3d}
        return json.loads(json.dumps(benchmark.answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr(benchmark, "measured", here)
    out = tmp_path / "network-benchmark"
    for part in ("inference", "training"):
        results = benchmark.benchmark(BenchmarkOptions(out, only=part, rounds=1), TINY)
        cases = benchmark.cases(TINY, part, DEVICE)
        assert [record.case for record in results.records] == cases
        assert all(record.measured.seconds > 0 for record in results.records)
        if part == "inference":
            for record in results.records:
                assert {name.split("/")[0] for name in record.measured.layers} == set(STEPS)
    names = ("", "-layers", "-growth")
    assert all((tmp_path / f"network-benchmark{name}.png").is_file() for name in names[1:])
    assert json.loads(out.with_suffix(".json").read_text())["rounds"] == 1
    assert "## Training step" in out.with_suffix(".md").read_text()


def test_a_case_is_its_median_round_and_tells_the_best_and_the_worst():
    rounds = [
        NetworkMeasurement(s, int(10 * s), {"a/b": s}, {"a": int(s)}) for s in (3.0, 1.0, 2.0)
    ]
    record = Record.of(NetworkCase("fast", (16, 64), 48), rounds)
    assert record.measured == NetworkMeasurement(2.0, 20, {"a/b": 2.0}, {"a": 2})
    assert (record.fastest, record.slowest) == (1.0, 3.0)


def stand_in(asked, *, until=10_000):
    """A machine whose processes all take a second, and which dies after so many."""

    def asked_for(request):
        if len(asked) == until:
            raise KeyboardInterrupt
        asked.append(request)
        if "floor" in request:
            return asdict(FLOOR)
        return {"seconds": 1.0, "peak": 1, "layers": {"head/soft-argmin": 1.0}}

    return asked_for


def test_a_benchmark_that_was_killed_goes_on(monkeypatch, tmp_path):
    options = BenchmarkOptions(tmp_path / "b", only="inference", rounds=2)
    whole = 1 + 2 * len(benchmark.cases(TINY, "inference", DEVICE))
    first, second = [], []
    monkeypatch.setattr(benchmark, "measured", stand_in(first, until=7))
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(options, TINY)
    kept = tmp_path / "b.unfinished"
    assert kept.is_dir()

    monkeypatch.setattr(benchmark, "measured", stand_in(second))
    found = benchmark.benchmark(options, TINY)
    assert len(first) == 7
    assert len(second) == whole - 7
    assert found.sittings == 2
    assert "in 2 sittings" in (tmp_path / "b.md").read_text()
    assert not kept.exists()


def test_what_takes_long_is_measured_once(monkeypatch, tmp_path):
    wanted = benchmark.cases(TINY, "inference", DEVICE)

    def slow_plain(request):
        answer = stand_in([])(request)
        return answer | {"seconds": 31.0} if request.get("form") == "plain" else answer

    asked = []
    monkeypatch.setattr(benchmark, "measured", lambda r: (asked.append(r), slow_plain(r))[1])
    benchmark.benchmark(BenchmarkOptions(tmp_path / "b", only="inference", rounds=3), TINY)
    plain = sum(case.form == "plain" for case in wanted)
    assert len(asked) == 1 + plain + 3 * (len(wanted) - plain)
    assert plain


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("null", "the content should be an object"),
        ('{"seconds": 1.0}', "peak is missing"),
        ('{"seconds": "1", "peak": 1}', "seconds should be a valid number"),
    ],
)
def test_damaged_answers_are_named(monkeypatch, tmp_path, answer, told):
    options = BenchmarkOptions(tmp_path / "b", only="inference", rounds=1)
    monkeypatch.setattr(benchmark, "measured", stand_in([], until=3))
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(options, TINY)
    files = (tmp_path / "b.unfinished").glob("*.gz")
    path = next(p for p in files if b"peak" in gzip.decompress(p.read_bytes()))
    path.write_bytes(gzip.compress(answer.encode()))
    with pytest.raises(ValueError, match="is damaged: delete the file to measure again") as caught:
        benchmark.benchmark(options, TINY)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_other_code_does_not_go_on(monkeypatch, tmp_path):
    options = BenchmarkOptions(tmp_path / "b", only="inference", rounds=1)
    monkeypatch.setattr(benchmark, "measured", stand_in([], until=3))
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(options, TINY)
    monkeypatch.setattr(benchmark, "code_hash", lambda: "another")
    with pytest.raises(ValueError, match=r"b\.unfinished: .* has code \w+, not another"):
        benchmark.benchmark(options, TINY)


def test_forms_without_layers_are_not_among_the_steps():
    figures = {"features/stem": 1.0}, {"features": 10}
    records = [
        Record.of(NetworkCase("fast", (16, 64), 48), [NetworkMeasurement(1.0, 10, *figures)]),
        Record.of(NetworkCase("exact", (16, 64), 48), [NetworkMeasurement(0.5, 20)]),
    ]
    text = benchmark_markdown(NetworkResults("m", 1, FLOOR, records, []), "n")
    rows, steps = text.split("### Steps")
    assert rows.count("| exact |") == 1
    assert "| fast |" in steps
    assert "| exact |" not in steps


def results():
    """The fast form 7 times faster than plain, 4 than plain kept; a quarter of its memory."""
    size = (544, 960)
    cases = {
        NetworkCase("plain", size, keep_memory=False): (7.0, 400),
        NetworkCase("plain", size): (4.0, 800),
        NetworkCase("fast", size): (1.0, 100),
        NetworkCase("fast", size, network="ea-psmnet"): (1.25, 100),
    }
    records = [Record.of(case, [NetworkMeasurement(*figures)]) for case, figures in cases.items()]
    pairs = [Accuracy("p", 0.001, 0.03, 1.0, 1.0, 1.001), Accuracy("q", 0, 0.005, 1.0, 1.0, 1.0)]
    return NetworkResults("m", 1, FLOOR, records, pairs)


def test_ratios_are_against_either_allocator():
    found, case = results(), NetworkCase("fast", (544, 960))
    assert found.faster(case) == pytest.approx(7)
    assert found.faster(case, kept=True) == pytest.approx(4)
    assert found.lighter(case) == pytest.approx(0.25)


def test_each_target_is_met_or_not():
    met = {target.name: target.met for target in results().targets()}
    assert met == {
        "inference, fast, 544 x 960": True,
        "peak memory, fast, 544 x 960": True,
        "attention's extra time, 544 x 960": False,
        "float32, largest change, px": True,
        "fast, mean change, mean of the pairs, px": True,
        "fast, mean change, worst pair, px": False,
        "fast, change of EPE, worst pair, px": True,
    }
    text = benchmark_markdown(results(), "n")
    assert "| not met |" in text
    assert results().verdict() == "5 of 7 targets met"


def test_the_floor_takes_the_better_rate_of_the_type():
    plain = NetworkCase("plain", (32, 64), 48)
    fast = NetworkCase("fast", (32, 64), 48)
    assert FLOOR.arithmetic(fast) == pytest.approx(1.5 * FLOOR.arithmetic(plain))
    step = NetworkCase("plain", (32, 64), 48, training=True)
    assert FLOOR.arithmetic(step) == pytest.approx(3 * FLOOR.arithmetic(plain))
