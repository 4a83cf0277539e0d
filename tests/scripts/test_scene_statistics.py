"""The measures of generated scenes on pictures whose figures are known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scene_benchmark import SceneRate, measure_scenes, scene_report
from scene_statistics import (
    DISPARITY_BINS,
    GRADIENT_BINS,
    main,
    measure,
    statistics,
)

from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.sample import StereoSample

SIZE = (40, 80)


def sample(left: np.ndarray, disparity: np.ndarray, valid: np.ndarray | None = None):
    grey = np.repeat(left.astype(np.uint8)[..., None], 3, 2)
    valid = np.ones(SIZE, bool) if valid is None else valid
    return StereoSample(grey, grey, np.where(valid, disparity, 0).astype(np.float32), valid, "pair")


def step() -> np.ndarray:
    """Near (12 px) in columns 30 to 49, far (4 px) elsewhere."""
    disparity = np.full(SIZE, 4.0)
    disparity[:, 30:50] = 12
    return disparity


def test_edges_and_hidden_pixels_of_a_near_strip_are_counted() -> None:
    histogram, _, found = measure(sample(np.zeros(SIZE), step()))
    assert found["edges of disparity, % of pixels"] == pytest.approx(100 * 2 / 80)
    # 4 columns leave the right picture; 8 more lie behind the strip.
    assert found["hidden from the right eye, %"] == pytest.approx(100 * 12 / 80)
    assert histogram[DISPARITY_BINS[:-1] == 0] == pytest.approx(0.75)
    assert histogram[DISPARITY_BINS[:-1] == 8] == pytest.approx(0.25)
    assert histogram.sum() == pytest.approx(1)
    assert found["median disparity, px"] == 4


def test_unknown_pixels_count_nowhere() -> None:
    known = np.ones(SIZE, bool)
    known[:, 30:50] = False
    histogram, _, found = measure(sample(np.zeros(SIZE), step(), known))
    assert histogram[0] == pytest.approx(1)
    assert found["edges of disparity, % of pixels"] == 0
    assert found["hidden from the right eye, %"] == pytest.approx(100 * 4 / 60)
    with pytest.raises(ValueError, match="pair: no disparity is known"):
        measure(sample(np.zeros(SIZE), step(), np.zeros(SIZE, bool)))


def test_large_disparities_stay_in_the_last_bin() -> None:
    histogram, _, found = measure(sample(np.zeros(SIZE), np.full(SIZE, 400.0)))
    assert histogram[-1] == 1
    assert found["disparity above 100 px, %"] == 100


def test_texture_of_known_pictures() -> None:
    flat, ramp = np.full(SIZE, 100), np.tile(3 * np.arange(80), (40, 1))
    board = np.where(np.indices(SIZE).sum(0) % 2, 255, 0)
    found = {
        name: measure(sample(x, step())) for name, x in zip("frb", (flat, ramp, board), strict=True)
    }
    assert found["f"][2]["gradient below 2 grey levels, %"] == 100
    assert found["f"][2]["local entropy, bits"] == pytest.approx(0, abs=1e-6)
    assert found["r"][2]["gradient below 2 grey levels, %"] == pytest.approx(100 * 2 / 80)
    assert found["r"][2]["mean gradient, grey levels"] == pytest.approx(3 * 78 / 80, rel=1e-3)
    bin_of_three = np.searchsorted(GRADIENT_BINS, 3) - 1
    assert found["r"][1][bin_of_three] == pytest.approx(78 / 80)
    assert found["b"][2]["local entropy, bits"] == pytest.approx(1, abs=1e-3)
    assert found["b"][2]["burnt out, %"] == pytest.approx(50)


def test_every_pair_weighs_the_same() -> None:
    few = np.zeros(SIZE, bool)
    few[0, 0] = True
    pairs = [
        sample(np.zeros(SIZE), np.full(SIZE, 20.0)),
        sample(np.zeros(SIZE), np.full(SIZE, 60.0), few),
    ]
    found = statistics(pairs)
    assert found.pairs == 2
    assert found.scalars["median disparity, px"] == pytest.approx(40)
    assert max(found.disparity) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no pairs"):
        statistics([])


def test_the_report_compares_a_folder_with_scenes(tmp_path: Path) -> None:
    for name in ("a_1", "b_1"):
        (tmp_path / "data" / name).mkdir(parents=True)
        scene = SyntheticScenes(size=SIZE, supersample=1).render(len(name))
        for side in ("left", "right"):
            path = tmp_path / "data" / name / f"{side}.png"
            cv2.imwrite(str(path), getattr(scene, side)[..., ::-1])
        np.save(tmp_path / "data" / name / "disp.npy", scene.disparity_left)
    main(out=tmp_path / "out", frames=tmp_path / "data", only="a_", scenes=2, size=SIZE)
    record = json.loads((tmp_path / "out.json").read_text())
    assert {label: found["pairs"] for label, found in record.items()} == {"a_": 1, "generated": 2}
    assert sum(record["generated"]["disparity"]) == pytest.approx(1)
    assert "| local entropy, bits" in (tmp_path / "out.md").read_text()
    assert cv2.imread(str(tmp_path / "out.png")).shape == (400, 1100, 3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_scenes_a_second_are_measured_and_told(workers: int) -> None:
    rate = measure_scenes(SyntheticScenes(size=SIZE, count=3), workers, warm_up=1)
    assert (rate.device, rate.workers) == ("cpu", workers)
    assert rate.samples_per_second > 0
    text = scene_report([SceneRate("cpu", 2, 7.25)], SIZE)
    assert "40 x 80" in text
    assert "| cpu    |       2 |      7.25 |" in text
