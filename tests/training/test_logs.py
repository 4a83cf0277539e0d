"""Metrics log and step clock."""

import json
from dataclasses import replace

import pytest
import torch
from training.tiny import FIGURES, OUTCOME

from ea_psmnet.machine import peak_bytes
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.training.logs import MetricsLog, StepClock, read_metrics

# metrics.jsonl ------------------------------------------------------------------------------------


def test_time_adds_up_over_resumptions(tmp_path, monkeypatch):
    """Ten seconds to step 2 and twenty to step 3, which is lost; 5 more after the resumption."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step, seconds in ((2, 10.0), (3, 20.0)):
        now[0] += seconds
        log.step(step, FIGURES)
    log.close()
    now[0] = 7.0  # of another process
    log = MetricsLog(tmp_path / "metrics.jsonl", 2)
    now[0] += 5.0
    log.step(3, FIGURES)
    log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["elapsed"]) for r in records] == [(2, 10.0), (3, 15.0)]


def test_every_line_is_there_when_it_was_written_and_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.step(1, FIGURES | {"loss": float("nan"), "gradient_norm": float("inf")})
    log.validation(1, replace(OUTCOME, by_range={"near": DisparityErrors()}))
    step, validation = (json.loads(line, parse_constant=pytest.fail) for line in path.open())
    assert (step["loss"], step["gradient_norm"], step["epe"]) == (None, None, 1.25)
    assert (validation["EPE"], validation["by_range"]["near"]["EPE"]) == (2.0, None)
    log.close()


WHOLE = {"kind": "step", "step": 2, "elapsed": 9.0} | FIGURES
VALIDATED = {"kind": "validation", "step": 2, "elapsed": 9.0, "images": 3, "by_range": {}, "EPE": 1}
BY_HAND = [
    *(WHOLE | change for change in ({"kind": ["step"]}, {"kind": "epoch"})),
    *(WHOLE | {"step": step} for step in ("2", None, 0.5)),
    *(WHOLE | change for change in ({"elapsed": None}, {"elapsed": "9"}, {"loss": "low"})),
    *(WHOLE | change for change in ({"samples_per_second": 0}, {"memory": float("nan")})),
    {name: value for name, value in WHOLE.items() if name != "waiting"},
    {name: value for name, value in VALIDATED.items() if name != "by_range"},
    *(VALIDATED | {"by_range": bands} for bands in ([1], {"near": 1}, {"near": {"EPE": "low"}})),
]
"""Lines that are JSON and no record: in each, one thing has been edited."""


@pytest.mark.parametrize(
    "damage",
    [
        *(b'{"kind": "st', b"\0" * 40, b"[1]\n", b"{}\n", b"\xff\n", b"[" * 10**5),
        *(json.dumps(record).encode() for record in BY_HAND),
    ],
)
def test_damaged_lines_are_dropped(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.step(1, FIGURES)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    MetricsLog(path, 5).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("record", [WHOLE, VALIDATED, WHOLE | {"loss": None}])
def test_whole_lines_are_kept(tmp_path, record):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record))
    assert read_metrics(tmp_path / "metrics.jsonl") == [record]


def test_the_clock_tells_the_peak_of_the_process_in_gib():
    peak = peak_bytes(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))
    assert StepClock().figures(samples=1)["memory"] == pytest.approx(peak / 2**30, rel=0.1)
