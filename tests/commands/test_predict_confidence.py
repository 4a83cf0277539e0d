"""`predict` with confidence, the right view, and other ranges than the network's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from stereo_pairs import textured_pair
from test_commands import fails

from ea_psmnet import StereoMatcher
from ea_psmnet.__main__ import main
from ea_psmnet.files import read_image, read_pfm, write_image
from ea_psmnet.inference.outputs import preview


@pytest.fixture(scope="module")
def sample():
    return textured_pair(64, 200)


@pytest.fixture(scope="module")
def pair(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "blots"
    write_image(folder / "left.png", sample.left)
    write_image(folder / "right.png", sample.right)
    return folder


@pytest.fixture(scope="module")
def result(sample):
    matcher = StereoMatcher.load(max_disparity=48, device="cpu", precision="exact")
    return matcher(sample.left, sample.right, confidence=True, right_view=True)


def predict(pair, out, *options):
    line = ["predict", pair / "left.png", pair / "right.png", "--out", out, "--device", "cpu"]
    line += ["--precision", "exact", "--max-disparity", "48", *options]
    return main([str(part) for part in line])


def grey(path):
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image.ndim == 2
    return image


def test_confidence_and_the_right_view_are_written(pair, tmp_path, result, capsys):
    assert predict(pair, tmp_path, "--write", "confidence", "right", "preview") == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    assert np.array_equal(np.load(tmp_path / "blots_confidence.npy"), result.confidence)
    steps = grey(tmp_path / "blots_confidence.png")
    assert steps.dtype == np.uint8
    assert np.abs(steps / 255 - result.confidence).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(read_pfm(tmp_path / "blots_right.pfm"), result.right)
    assert np.array_equal(grey(tmp_path / "blots_occluded.png") == 255, result.occluded)
    drawn = read_image(tmp_path / "blots_preview.png")
    assert np.array_equal(
        drawn, preview(result.image, result.disparity, result.confidence, name="blots")
    )


def test_less_confidence_is_masked(pair, tmp_path, result):
    assert predict(pair, tmp_path, "--min-confidence", "0.7", "--write", "disparity") == 0
    sure = result.confidence >= 0.7
    assert 0.1 < sure.mean() < 0.99
    disparity = read_pfm(tmp_path / "blots_disparity.pfm")
    assert np.array_equal(np.isfinite(disparity), sure)
    assert np.array_equal(disparity[sure], result.disparity[sure])
    assert np.array_equal(grey(tmp_path / "blots_disparity.png") > 0, sure)


def test_a_confidence_that_no_pixel_has_is_reported(pair, tmp_path, capsys):
    assert predict(pair, tmp_path, "--min-confidence", "1", "--write", "disparity") == 0
    assert "no pixel has a confidence of 1, the highest is 0." in capsys.readouterr().err
    assert not np.isfinite(read_pfm(tmp_path / "blots_disparity.pfm")).any()


def test_without_either_the_files_are_as_they_were(pair, tmp_path, result):
    assert predict(pair, tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "blots_disparity.pfm",
        "blots_disparity.png",
        "blots_pair.json",
        "blots_preview.png",
    ]
    assert np.array_equal(read_pfm(tmp_path / "blots_disparity.pfm"), result.disparity)


@pytest.mark.parametrize("options", [("--min-disparity", "-16"), ("--range", "auto")])
def test_cameras_that_are_toed_in(pair, sample, tmp_path, capsys, options):
    toed = tmp_path / "toed"
    write_image(toed / "left.png", sample.left)
    write_image(toed / "right.png", np.roll(sample.right, 18, axis=1))
    assert predict(toed, tmp_path / "out", "--write", "disparity", *options) == 0
    told = capsys.readouterr().err
    assert (told.count("\n") == 1 and "px" in told) == ("auto" in options)
    found = read_pfm(tmp_path / "out" / "toed_disparity.pfm")
    inside = sample.masks["nonocc"][:, 60:180]
    assert np.median(np.abs(found + 18 - sample.disparity)[:, 60:180][inside]) < 0.5


def test_the_smallest_disparity_is_of_the_pair_at_any_scale(pair, sample, tmp_path):
    for scale in ("1", "0.5"):
        options = ("--scale", scale, "--min-disparity", "-10", "--write", "disparity", "--force")
        assert predict(pair, tmp_path, *options) == 0
        found = read_pfm(tmp_path / "blots_disparity.pfm")
        inside = sample.masks["nonocc"][:, 60:]
        assert np.median(np.abs(found - sample.disparity)[:, 60:][inside]) < 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--min-confidence", "1.5"), "min_confidence is 1.5, expected 0 to 1"),
        (("--min-disparity", "-9999"), "min_disparity is -9999"),
    ],
)
def test_impossible_values_are_refused(pair, tmp_path, capsys, options, told):
    images = (pair / "left.png", pair / "right.png")
    fails(capsys, told, "predict", *images, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
