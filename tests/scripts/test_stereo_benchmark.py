"""The benchmark of methods at tiny sizes, with OpenCV's alone; never its times."""

import json

import numpy as np
import pytest
import stereo as benchmark
import stereo_report
import torch

METHOD = "StereoSGBM"


@pytest.fixture
def tiny(monkeypatch):
    """One size, a small convolution, and no processes but this one."""
    for module in (benchmark, stereo_report):
        monkeypatch.setattr(module, "SIZES", ((32, 256),))
    monkeypatch.setattr(stereo_report, "MAIN", "256x32")
    monkeypatch.setattr(benchmark, "STREAM", (32, 256))
    monkeypatch.setattr(benchmark, "_convolution", lambda dtype: lambda: torch.zeros(1))
    monkeypatch.setattr(
        benchmark, "ask", lambda script, request, env=None: benchmark.answer(request)
    )


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of a texture that is 8 px apart; the ground truth of a twelfth says 20 px."""
    rng = np.random.default_rng(0)
    for name in ("mb-first", "eth3d-second"):
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        texture = rng.integers(0, 256, (48, 264, 3), dtype=np.uint8)
        benchmark.write_image(folder / "left.png", texture[:, :-8])
        benchmark.write_image(folder / "right.png", texture[:, 8:])
        disparity = np.full((48, 256), 8, np.float32)
        disparity[:4] = 20
        np.save(folder / "disp.npy", disparity)
    return tmp_path / "pairs"


def test_a_whole_run_reports_times_memory_and_errors(tiny, pairs, tmp_path):
    out = tmp_path / "stereo"
    benchmark.benchmark([METHOD], 2, pairs, out)
    report = json.loads(out.with_suffix(".json").read_text())
    assert {row["situation"] for row in report["pairs"]} == {"all threads", "one thread", "busy"}
    for row in report["pairs"]:
        assert 0 < row["seconds"]["best"] <= row["seconds"]["median"] <= row["seconds"]["worst"]
    assert report["stream"][METHOD]["latency"] > 0
    errors = report["errors"][METHOD]
    assert set(errors) == {"Middlebury", "ETH3D"}
    whole = errors["Middlebury"][benchmark.ALL]
    assert whole["pairs"] == 1
    assert whole["bad_2"] == pytest.approx(100 / 12, abs=1)
    assert whole["epe"] == pytest.approx(1, abs=0.5)
    assert "## Errors" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").is_file()
    assert not out.with_suffix(".unfinished").exists()


def test_a_benchmark_that_was_stopped_goes_on(tiny, pairs, tmp_path, monkeypatch):
    """Rounds that are kept are not measured again, and one that does not count comes first."""
    measured, whole = [], benchmark._measure_pairs

    def until_stopped(methods):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return whole(methods)

    monkeypatch.setattr(benchmark, "_measure_pairs", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark([METHOD], 2, pairs, tmp_path / "stereo")
    kept = tmp_path / "stereo.unfinished"
    assert kept.is_dir()
    with pytest.raises(ValueError, match="methods"):
        benchmark.benchmark([METHOD, "StereoBM"], 2, pairs, tmp_path / "stereo")
    benchmark.benchmark([METHOD], 2, pairs, tmp_path / "stereo")
    assert len(measured) == 5
    assert not kept.exists()
