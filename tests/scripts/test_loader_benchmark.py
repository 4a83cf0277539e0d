"""The loader's benchmark runs, counts what it says, and tells it."""

from __future__ import annotations

import loader_benchmark
import pytest
from loader_benchmark import (
    Rate,
    Stage,
    loader_report,
    measure_rate,
    measure_stages,
)
from stereo_pairs import textured_pair

from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.files import write_image, write_pfm


@pytest.fixture
def frames(tmp_path):
    pair = textured_pair()
    write_image(tmp_path / "a/left.png", pair.left)
    write_image(tmp_path / "a/right.png", pair.right)
    write_pfm(tmp_path / "a/disp.pfm", pair.disparity)
    return PairFolder(tmp_path)


def test_only_samples_after_the_warm_up_are_on_the_clock(frames, monkeypatch):
    """A clock that goes on by one a look: at the start, at the end of the warm-up, at the end."""
    looks = iter(range(100))
    monkeypatch.setattr(loader_benchmark.time, "perf_counter", lambda: float(next(looks)))
    rate = measure_rate(frames, "none", 0, crop=(32, 64), warm_up=20, counted=30)
    # Batches of 8: the warm-up ends with the third, after 24 samples; 26 of the 50 are left.
    assert rate == Rate("none", 0, 26.0)
    assert next(looks) == 3


def test_workers_deliver(frames):
    rate = measure_rate(frames, "robust", 1, crop=(32, 64), warm_up=8, counted=16)
    assert rate.workers == 1
    assert rate.samples_per_second > 0


def test_stages_and_report(frames):
    stages = measure_stages(frames, crop=(32, 64))
    assert len(stages) == 5
    assert all(stage.milliseconds > 0 for stage in stages)
    text = loader_report([Rate("none", 2, 123.456)], [Stage("decode", 1.5)])
    assert "| none   |       2 |    123.46 |" in text
    assert "1.50" in text
