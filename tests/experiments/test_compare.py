import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.experiments.compare import (
    Comparison,
    Crossing,
    Result,
    compare,
    comparison_markdown,
    crossing,
    curves,
)
from ea_psmnet.experiments.measure import Budget
from ea_psmnet.experiments.networks import Network, forecast, named_networks, parse_variant
from ea_psmnet.experiments.plots import comparison_plot, line_styles
from ea_psmnet.experiments.trial import Load, Outcome, Trial, attention_site, plan, run_trial
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.store import Store

GIB = 2**30
BUDGET = Budget("2GiB", 2 * GIB)
TINY = {"width": 0.125, "max_disparity": 16}
MACHINE = {
    "device": "cpu",
    "threads": 2,
    "dtype": "float32",
    "allocator": "kept",
    "torch": "2.11",
}


def trial(text, size=(32, 48), work="inference", batch=1, **changes):
    config = parse_variant(text, **TINY).to_dict()
    made = Trial(text, config, None, work, (batch, *size), 2 * GIB, repeats=1)
    return replace(made, **changes)


def result(text, size, peak, *, work="inference", end="fits", batch=1, **outcome):
    """A made-up result; sizes are those of full networks, which nobody runs here."""
    config = PSMNetConfig.from_dict(parse_variant(text, **TINY).to_dict())
    shape = (batch, *size)
    expected = forecast(config, shape, training=work == "training")
    ended = Outcome(end, shape, peak=peak, **outcome)
    return Result(trial(text, size, work, batch), 1000, expected, ended)


# The workloads, in this process ------------------------------------------------------------------


@pytest.mark.parametrize("work", ["inference", "training"])
@pytest.mark.parametrize("text", ["baseline", "focused@bottleneck"])
def test_a_workload_that_fits_is_measured(work, text):
    outcome = run_trial(trial(text, work=work, batch=2))
    assert outcome.end == "fits"
    assert outcome.shape == (2, 32, 48)
    assert outcome.seconds > 0
    assert outcome.peak >= 0
    assert outcome.figures is outcome.requested is outcome.module is None


def test_an_error_of_another_kind_is_not_called_out_of_memory():
    with pytest.raises(ValueError, match="multiples of 16"):
        run_trial(trial("baseline", size=(30, 48), work="training"))


REFUSALS = [
    # The allocators' own words, of the CPU and of a card; then libraries that tell no size.
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9663676416 "
     "bytes. Error code 12 (Cannot allocate memory)", RuntimeError, 9 * GIB),
    ("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 10.91 GiB of "
     "which 7.00 GiB is free. 11.00 GiB allowed; Of the allocated memory 2.00 GiB is allocated by "
     "PyTorch", torch.OutOfMemoryError, 9 * GIB),
    ("CUDA out of memory. Tried to allocate 2.50 MiB. GPU 0", torch.OutOfMemoryError, 2621440),
    ("CUDA out of memory. Tried to allocate 512 bytes. GPU 0", torch.OutOfMemoryError, 512),
    ("CUDA error: out of memory", RuntimeError, None),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", RuntimeError, None),
]  # fmt: skip


@pytest.mark.parametrize(("message", "kind", "requested"), REFUSALS)
def test_a_refusal_is_an_outcome_with_bytes_and_the_module(message, kind, requested, monkeypatch):
    def refuse(*_):
        raise kind(message)

    monkeypatch.setattr(EfficientAttention, "forward", refuse)
    outcome = run_trial(trial("efficient@bottleneck"))
    assert (outcome.end, outcome.requested) == ("out of memory", requested)
    assert outcome.module == "aggregation.hourglasses.0.attention.bottleneck"
    assert attention_site(outcome.module) == "hourglass1.bottleneck"


def test_a_failure_that_is_none_of_memory_is_no_outcome(monkeypatch):
    monkeypatch.setattr(EfficientAttention, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_trial(trial("efficient"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_the_map_of_non_local_attention_is_refused():
    """At 1/8 of 128 x 256 with 96 disparities it takes (12 * 16 * 32)^2 floats, 144 MiB."""
    starving = trial("non-local", (128, 256), budget=140 * 2**20)
    wide = starving.network | {"max_disparity": 96}
    outcome = run_trial(replace(starving, network=wide, device="cuda", precision="exact"))
    assert outcome.end == "out of memory"
    assert outcome.requested == pytest.approx(144 * 2**20, abs=2**21)
    assert outcome.module.startswith("aggregation.hourglasses.0.attention.encoder")


# Processes that die or hang ----------------------------------------------------------------------


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Let trials run a shell script instead of python."""

    def install(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\ncat > {tmp_path}/request.json\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        return tmp_path / "request.json"

    assert sys.executable
    return install


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "timeout", "end", "message"),
    [
        ("exec sleep 60", 1, "failed", "the process did not end within 1 s"),
        ("kill -9 $$", 60, "failed", "the process was killed by SIGKILL"),
        ("echo first >&2; echo 'Error: broken' >&2; exit 3", 60, "failed", "3: Error: broken"),
        ("echo what: std::bad_alloc >&2; kill -6 $$", 60, "out of memory", "at std::bad_alloc"),
    ],
)
def test_a_process_that_dies_or_hangs_is_an_outcome(interpreter, script, timeout, end, message):
    interpreter(script)
    comparison = compare([trial("baseline"), trial("efficient")], BUDGET, timeout=timeout)
    assert [r.outcome.end for r in comparison.results] == [end, end]
    assert message in comparison.results[1].outcome.error
    assert message in comparison_markdown(comparison)


def test_a_process_is_told_the_trial_and_its_answer_is_read(interpreter, tmp_path):
    answer = '{"end": "fits", "shape": [1, 32, 48], "seconds": 2.5, "peak": 7}'
    request = interpreter(
        f"""path=$(sed 's/.*"outcome": "\\([^"]*\\)".*/\\1/' {tmp_path}/request.json)
        echo '{answer}' > $path"""
    )
    asked = trial("efficient", budget=5 * GIB, repeats=7)
    (found,) = compare([asked], BUDGET).results
    assert found.outcome == Outcome("fits", (1, 32, 48), 2.5, 7)
    told = json.loads(request.read_text())["trial"]
    assert told["budget"] == 5 * GIB
    assert told["repeats"] == 7
    assert PSMNetConfig.from_dict(told["network"]) == parse_variant("efficient", **TINY)


def test_a_comparison_that_was_stopped_goes_on(interpreter, tmp_path):
    """The second of two trials fails at first; the third is another trial of the same network."""
    runs = tmp_path / "runs"
    answer = f"""path=$(sed 's/.*"outcome": "\\([^"]*\\)".*/\\1/' {tmp_path}/request.json)
        echo run >> {runs}; echo '{{"end": "fits", "shape": [1, 32, 48], "peak": 7}}' > $path"""
    weights = tmp_path / "weights"
    weights.write_bytes(b"first")
    trained = trial("hydra", checkpoint=str(weights))
    trials, kept = [trial("baseline"), trial("efficient"), trained], Store(tmp_path / "kept")
    interpreter(f"if grep -q efficient {tmp_path}/request.json; then exit 1; fi\n{answer}")
    ends = [r.outcome.end for r in compare(trials, BUDGET, kept=kept).results]
    assert ends == ["fits", "failed", "fits"]
    interpreter(answer)
    again = compare(trials, BUDGET, kept=kept).results
    assert [r.outcome for r in again] == [Outcome("fits", (1, 32, 48), peak=7)] * 3
    assert runs.read_text().split() == ["run"] * 3  # two before, one now
    weights.write_bytes(b"second")
    compare([replace(trials[0], budget=GIB), trained], BUDGET, kept=kept)
    assert runs.read_text().split() == ["run"] * 5
    compare(trials[:1], BUDGET)
    assert runs.read_text().split() == ["run"] * 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "invalid JSON"),
        ("null", "the content should be an object"),
        ("[]", "the content should be an object"),
        ("{}", "end is missing"),
        ('{"end": "fine"}', "end should be 'fits', 'out of memory' or 'failed', not 'fine'"),
        ('{"end": "fits", "shape": [1, 32]}', "shape[2] is missing"),
        ('{"end": "fits", "peak": "7"}', "peak should be a valid integer, not '7'"),
        ('{"end": "fits", "seconds": NaN}', "seconds must be finite"),
        ('{"end": "fits", "colour": 7}', "colour is unknown"),
    ],
)
def test_a_damaged_outcome_is_named(interpreter, tmp_path, text, told):
    interpreter(
        f"""path=$(sed 's/.*"outcome": "\\([^"]*\\)".*/\\1/' {tmp_path}/request.json)
        echo '{{"end": "fits"}}' > $path"""
    )
    compare([trial("baseline")], BUDGET, kept=Store(tmp_path / "kept"))
    (path,) = (tmp_path / "kept").iterdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="damaged: delete it, and its trial runs again") as caught:
        compare([trial("baseline")], BUDGET, kept=Store(tmp_path / "kept"))
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_network_that_cannot_be_built_stops_before_anything_runs(interpreter):
    request = interpreter("exit 1")
    with pytest.raises(ValueError, match=r"must be divisible by heads \(3\)"):
        compare([trial("baseline"), trial("efficient,heads=3")], BUDGET)
    assert not request.exists()


# What is asked for -------------------------------------------------------------------------------


def test_the_default_plan_is_the_papers_three_networks_at_one_size():
    networks = named_networks((), (), (), sites=("encoder",), width=0.5, max_disparity=96)
    assert [n.label for n in networks] == [
        "baseline",
        "efficient@encoder",
        "non-local@encoder",
    ]
    trials = plan(networks, Load(), budget=GIB)
    assert len(trials) == 3 * 2
    assert {t.shape for t in trials} == {(1, 256, 512)}
    assert {t.network["max_disparity"] for t in trials} == {96}


def test_batches_and_sizes_multiply_and_come_in_order():
    network = Network("baseline", parse_variant("baseline", **TINY))
    load = Load(
        sizes=("64x32", "32x32"),
        batches=(2, 1),
    )
    shapes = [t.shape for t in plan([network], load, budget=GIB) if t.work == "training"]
    assert shapes == [(1, 32, 32), (1, 64, 32), (2, 32, 32), (2, 64, 32)]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"sizes": ("100x200",)}, "'100x200' is not a size"),
        ({"sizes": ("4x32x32",)}, "'4x32x32' is not a size"),
        ({"sizes": ("32x16",)}, "narrower than the 32 disparities"),
        ({"batches": (0,)}, "a batch is 0, expected 1 to 65536"),
    ],
)
def test_impossible_loads_are_refused(load, message):
    network = Network("baseline", PSMNetConfig(max_disparity=32))
    with pytest.raises(ValueError, match=message):
        plan([network], Load(**load), budget=GIB)


# Where memory crosses the budget -----------------------------------------------------------------


def test_between_two_sizes_memory_goes_as_a_power():
    """16 times the memory for 4 times the pixels: 4 times, the budget, at twice the pixels."""
    small = result("non-local", (32, 64), GIB // 2)
    large = result("non-local", (64, 128), GIB, end="out of memory", requested=7 * GIB)
    assert large.demand == 8 * GIB
    assert crossing([small, large], 2 * GIB) == Crossing(pytest.approx(2 * 32 * 64), True)


def test_beyond_the_sizes_memory_goes_straight_on():
    curve = [result("efficient", (32, 64), GIB), result("efficient", (32, 128), 3 * GIB // 2)]
    at = crossing(curve, 3 * GIB)
    assert at == Crossing(pytest.approx(32 * 320), False)


def test_beyond_the_sizes_pairs_of_positions_go_with_the_square():
    """Memory x + x^2 in units of 32 x 64 pixels and GiB: 2 at one, 6 at two, 12 at three."""
    curve = [result("non-local", (32, 64), 2 * GIB), result("non-local", (32, 128), 6 * GIB)]
    assert crossing(curve, 12 * GIB) == Crossing(pytest.approx(3 * 32 * 64), False)


def test_one_size_says_nothing_about_growth():
    assert crossing([result("efficient", (32, 64), GIB)], 2 * GIB) is None
    dead = replace(result("efficient", (32, 128), 0), outcome=Outcome("failed", error="gone"))
    assert crossing([result("efficient", (32, 64), GIB), dead], 2 * GIB) is None


def test_curves_are_told_apart_by_network_and_batch():
    results = [
        result("efficient", (32, 128), 2),
        result("efficient", (32, 64), 1),
        result("efficient", (32, 64), 1, batch=2),
        result("baseline", (32, 64), 1),
    ]
    found = curves(results)
    assert set(found) == {("efficient", 1), ("efficient", 2), ("baseline", 1)}
    assert [r.outcome.peak for r in found["efficient", 1]] == [1, 2]


# The report --------------------------------------------------------------------------------------


def some_comparison():
    site = "aggregation.hourglasses.0.attention.encoder"
    refused = {"end": "out of memory", "requested": 65536, "module": site}
    results = [
        result("baseline", (32, 64), GIB // 4, seconds=1.0),
        result("non-local", (32, 64), GIB, seconds=4.0),
        result("non-local-sdpa", (32, 64), GIB // 2, seconds=3.0),
        result("baseline", (64, 128), GIB, seconds=4.0),
        result("non-local", (64, 128), GIB, **refused),
        result("non-local-sdpa", (64, 128), GIB, seconds=48.0),
        result("non-local", (32, 64), GIB, work="training", seconds=4.0),
        result("hydra@bottleneck", (32, 64), GIB, seconds=4.0),
    ]
    return Comparison(BUDGET, MACHINE, results)


def test_a_refusal_stands_beside_the_closed_form_of_the_module_that_asked():
    """The map at 1/8 of 64 x 128 with 16 disparities is (2 * 8 * 16)^2 floats."""
    text = comparison_markdown(some_comparison())
    assert (2 * 8 * 16) ** 2 * 4 == 262144
    (line,) = (line for line in text.splitlines() if "asked for" in line)
    assert "non-local, inference, 64 x 128: aggregation.hourglasses.0.attention.encoder" in line
    assert "asked for 64.0 KiB (65,536 bytes) after a peak of 1.0 GiB" in line
    assert "one n x n map 256.0 KiB (262,144 bytes)" in line


def test_a_network_without_hourglasses_has_no_bottleneck_to_tell_of():
    basic = parse_variant("non-local@volume", aggregation="basic", **TINY)
    refused = result("non-local", (64, 128), GIB, end="out of memory", requested=65536)
    refused = replace(refused, trial=replace(refused.trial, network=basic.to_dict()))
    text = comparison_markdown(Comparison(BUDGET, MACHINE, [refused]))
    assert "does not fit at 64 x 128" in text
    assert "bottleneck" not in text


def test_the_report_is_fair_to_non_local_attention():
    text = comparison_markdown(some_comparison())
    assert (
        "non-local (inference) stores n x n weights: fits at 32 x 64; does not fit at 64 x 128"
        in text
    )
    # At 1/16: (1 * 4 * 8)^2 floats.
    assert "at 1/16 (bottleneck) one map would take 4.0 KiB" in text
    assert "3.00 times that of baseline, 0.75 times that of non-local" in text
    assert "12.00 times that of baseline." in text
    assert "that of hydra@bottleneck" not in text  # another place, no rival
    assert "allocator: glibc told to keep" in text


def test_crossings_are_told_as_found_extrapolated_or_below_all_that_was_tried():
    """Baseline grows 0.75 GiB in 6144 pixels, 1 GiB from the budget at 8192: at 16,384."""
    refused = result("non-local@volume", (32, 64), GIB, end="out of memory", requested=2 * GIB)
    some = some_comparison()
    text = comparison_markdown(replace(some, results=[*some.results, refused]))
    rows = [line for line in text.splitlines() if line.rstrip("| ").endswith(" k")]
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in rows] == [
        ["baseline", "1", "~ 16.4 k"],
        ["non-local", "1", "8.19 k"],
        ["non-local-sdpa", "1", "~ 20.5 k"],
        ["non-local@volume", "1", "below 2.05 k"],
    ]


def test_colours_tell_mechanisms_and_styles_their_places():
    labels = ["baseline", "hydra@encoder", "hydra@bottleneck", "efficient@encoder,heads=2"]
    looks = line_styles(labels)
    assert len(set(looks.values())) == len(labels)
    assert looks["hydra@encoder"][0] == looks["hydra@bottleneck"][0]
    assert len({colour for colour, _ in looks.values()}) == 3
    many = line_styles([f"run-{index}" for index in range(12)])
    assert len(set(many.values())) == 12


def test_on_a_card_a_refusals_bytes_are_not_told_as_exact():
    text = comparison_markdown(
        replace(some_comparison(), machine=MACHINE | {"device": "GTX 1080 Ti"})
    )
    assert "asked for about 64.0 KiB after a peak" in text


def test_only_what_ran_has_a_table():
    text = comparison_markdown(some_comparison())
    assert "## Prediction of random images" in text
    assert "## Training step on random images" in text
    assert "dataset" not in text
    assert "## Failed" not in text
    assert "EPE" not in text


def test_the_report_is_json_and_a_picture():
    comparison = some_comparison()
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert values["budget"] == {"name": "2GiB", "bytes": 2 * GIB}
    record = values["results"][4]
    assert set(record) == {"trial", "parameters", "forecast", "outcome"}
    assert record["outcome"]["requested"] == 65536
    assert record["forecast"]["sites"]["hourglass1.encoder"]["map_bytes"] == 262144
    picture = comparison_plot(comparison)
    assert picture.dtype == np.uint8
    assert picture.std() > 5


def test_the_plot_shows_what_was_refused_where_it_would_have_been():
    """Without the refusal the upper part of the first panel, above the budget, is empty."""
    comparison = some_comparison()
    fits = [r for r in comparison.results if r.outcome.end == "fits"]
    assert (comparison_plot(comparison) != comparison_plot(replace(comparison, results=fits))).any()
    dataset = [replace(r, trial=replace(r.trial, work="dataset", shape=None)) for r in fits]
    assert comparison_plot(replace(comparison, results=dataset)) is None


def test_there_is_no_plot_of_a_single_point():
    some = some_comparison()
    one = next(r for r in some.results if r.demand and r.trial.work == "inference")
    assert comparison_plot(replace(some, results=[one])) is None
    steps = [replace(r, trial=replace(r.trial, work="training")) for r in some.results]
    with_one, alone, with_two = (
        comparison_plot(replace(some, results=[*found, *steps])).shape
        for found in ([one], [], [one, one])
    )
    assert with_one == alone < with_two


def test_the_report_begins_with_figures():
    text = comparison_markdown(some_comparison())
    assert text.startswith("## Prediction of random images\n\n| variant ")
    assert text.index("## How this was measured") > text.index("## Non-local attention")
