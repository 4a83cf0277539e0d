"""Calibrations: scaling, doubts, and rectification of pairs rendered through known lenses."""

import warnings
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from ea_psmnet.calibration import Calibration, Lens, RawCalibration

HEIGHT, WIDTH = 480, 640
BASELINE = 0.12
DISTANCE, SPACING = 2.0, 0.15  # of the dotted plane, and of its dots, in metres
TURN = cv2.Rodrigues(np.array((0.02, -0.03, 0.015)))[0]
MODELS = {
    "pinhole": [],
    "plumb_bob": [-0.28, 0.09, 0.001, -0.0008, -0.01],
    "rational_polynomial": [0.3, 0.05, 0.0005, 0.0003, 0.01, 0.55, 0.1, 0.02],
    "equidistant": [-0.03, 0.01, -0.004, 0.001],
}


def raw_calibration(model):
    left = Lens(np.array(((420.0, 0, 315), (0, 425, 244), (0, 0, 1))), np.array(MODELS[model]))
    right = Lens(np.array(((430.0, 0, 322), (0, 428, 236), (0, 0, 1))), np.array(MODELS[model]))
    towards = TURN @ np.array((-BASELINE, 0.004, -0.003))
    towards *= BASELINE / np.linalg.norm(towards)
    return RawCalibration(left, right, TURN, towards, WIDTH, HEIGHT, fisheye=model == "equidistant")


def rays(lens, fisheye):
    """Direction (H, W, 3) in the camera's frame that each pixel of a distorted image sees."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    pixels = np.stack((x, y), -1).reshape(-1, 1, 2)
    if fisheye:
        plane = cv2.fisheye.undistortPoints(pixels, lens.matrix, lens.distortion)
    else:
        # The default stops after five iterations, which is not exact.
        criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        plane = cv2.undistortPoints(pixels, lens.matrix, lens.distortion, criteria=criteria)
    plane = np.asarray(plane).reshape(HEIGHT, WIDTH, 2)
    return np.concatenate((plane, np.ones((HEIGHT, WIDTH, 1))), -1)


def dots(origin, directions):
    """Image of a plane with a grid of soft dots, seen from a point in given directions."""
    reach = (DISTANCE - origin[2]) / directions[..., 2]
    place = (origin + reach[..., None] * directions)[..., :2] / SPACING
    nearest = np.rint(place)
    distance = np.linalg.norm(place - nearest, axis=-1)
    shine = np.exp(-((distance / 0.12) ** 2)) * (np.abs(nearest).max(-1) <= 6)
    return np.repeat(np.rint(20 + 220 * shine).astype(np.uint8)[..., None], 3, axis=2)


@cache
def rendered(model):
    """Both views of the dotted plane, which faces the left camera at DISTANCE."""
    raw = raw_calibration(model)
    left = dots(np.zeros(3), rays(raw.left, raw.fisheye))
    centre = -raw.rotation.T @ raw.translation
    return left, dots(centre, rays(raw.right, raw.fisheye) @ raw.rotation)


def dot_centres(image):
    """Centroids (N, 2) of the dots that lie wholly in the image, as column and row."""
    light = image[..., 0].astype(np.float64) - 20
    count, labels, stats, _ = cv2.connectedComponentsWithStats((light > 40).astype(np.uint8))
    centres = []
    for i in range(1, count):
        x, y, width, height, area = stats[i]
        if area > 12 and min(x, y) > 0 and x + width < WIDTH and y + height < HEIGHT:
            rows, columns = np.nonzero(labels == i)
            weight = light[rows, columns] - 40  # so that pixels join gradually
            centres.append((np.average(columns, weights=weight), np.average(rows, weights=weight)))
    return np.array(centres)


@cache
def rectified_dots(model):
    """Centroids of the same dots in both rectified views, (N, 2) each, and their calibration."""
    views, calibration = raw_calibration(model).rectify(*rendered(model))
    left, right = map(dot_centres, views)
    guess = left - (calibration.f * calibration.baseline / DISTANCE, 0)
    gaps = np.linalg.norm(guess[:, None] - right[None], axis=-1)
    near = gaps.min(1) < 0.3 * SPACING * calibration.f / DISTANCE
    return left[near], right[gaps.argmin(1)[near]], calibration


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_pair_through_known_lenses_comes_back_to_its_rows(model):
    left, right, calibration = rectified_dots(model)
    assert len(left) > 40
    assert np.abs(left[:, 1] - right[:, 1]).max() < 0.1
    rows = [np.sort(dot_centres(view)[:, 1]) for view in rendered(model)]
    assert np.abs(rows[0] - rows[1]).max() > 2  # it had to be rectified
    assert calibration.baseline == pytest.approx(BASELINE, rel=1e-9)
    assert (calibration.width, calibration.height, calibration.doffs) == (WIDTH, HEIGHT, 0)


@pytest.mark.parametrize("model", MODELS)
def test_rectified_dots_have_their_distances_in_metres(model):
    left, right, calibration = rectified_dots(model)
    depth = calibration.f * BASELINE / (left[:, 0] - right[:, 0])
    fy = calibration.f if calibration.fy is None else calibration.fy
    points = np.stack(
        (
            (left[:, 0] - calibration.cx) * depth / calibration.f,
            (left[:, 1] - calibration.cy) * depth / fy,
            depth,
        ),
        -1,
    )
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    nearest = gaps.min(1)
    assert np.median(nearest) == pytest.approx(SPACING, rel=0.01)
    # 0.1 px of disparity are 8 mm of depth here; the plane was rotated with the left camera.
    residual = np.linalg.svd(points - points.mean(0))[1][-1] / np.sqrt(len(points))
    assert residual < 0.008
    assert np.linalg.norm(points, axis=1).min() == pytest.approx(DISTANCE, abs=0.02)


def test_a_raw_calibration_follows_the_size_of_the_images():
    raw = raw_calibration("plumb_bob")
    views, whole = raw.rectify(*rendered("plumb_bob"))
    halves = [cv2.resize(view, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
              for view in rendered("plumb_bob")]  # fmt: skip
    small, half = raw.rectify(*halves)
    assert half.f == pytest.approx(whole.f / 2, rel=0.01)
    expected = cv2.resize(views[0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert np.abs(small[0].astype(int) - expected).mean() < 2


def test_cameras_in_the_wrong_places_are_refused():
    raw = raw_calibration("pinhole")
    for shift, message in (
        ((0.1, 0, 0), "to the left of the first"),
        ((-0.01, 0.1, 0), "above each other"),
    ):
        with pytest.raises(ValueError, match=message):
            RawCalibration(raw.left, raw.right, np.eye(3), np.array(shift))
    for rotation in (2 * np.eye(3), np.diag((1.0, 1, -1))):
        with pytest.raises(ValueError, match="R is not a rotation matrix"):
            RawCalibration(raw.left, raw.right, rotation, raw.translation)
    with pytest.raises(ValueError, match="T is zero"):
        RawCalibration(raw.left, raw.right, np.eye(3), np.zeros(3))
    assert np.linalg.norm(raw.with_baseline(0.3).translation) == pytest.approx(0.3)


def test_impossible_lenses_are_refused():
    raw = raw_calibration("plumb_bob")
    with pytest.raises(ValueError, match="not an intrinsic matrix: is it transposed"):
        Lens(raw.left.matrix.T, np.zeros(4))
    with pytest.raises(ValueError, match="3 distortion coefficients: expected 0, 4, 5, 8"):
        Lens(raw.left.matrix, np.zeros(3))
    with pytest.raises(ValueError, match="fisheye lenses have 4 coefficients, not 5"):
        replace(raw, fisheye=True)
    four = Lens(raw.left.matrix, np.zeros(4))
    with pytest.raises(ValueError, match="fisheye lenses have 4 coefficients, not 0"):
        replace(raw, left=four, right=Lens(four.matrix, np.zeros(0)), fisheye=True)


def test_a_raw_calibration_of_other_images_is_told():
    raw = replace(raw_calibration("plumb_bob"), width=None, height=None)
    whole = rendered("plumb_bob")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw.rectify(*whole)
    quarter = [view[::2, ::2] for view in whole]
    with pytest.warns(UserWarning, match=r"principal point \(315, 244\) .* of 320 x 240"):
        raw.rectify(*quarter)


def test_pixel_centres_keep_their_rays_when_images_are_resized():
    calibration = Calibration(500, 310, 250, 0.1, doffs=12, width=640, height=480)
    scaled = calibration.scaled_to(240, 1280)
    assert scaled == Calibration(1000, 620.5, 124.75, 0.1, 24, 1280, 240, fy=250)
    # The border of the image, half a pixel before its first centre, stays where it is.
    assert (-0.5 - scaled.cx) / scaled.f == pytest.approx((-0.5 - calibration.cx) / calibration.f)
    assert (-0.5 - scaled.cy) / scaled.fy == pytest.approx((-0.5 - calibration.cy) / calibration.f)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": 193.0}, "the baseline is 193 m: if that number is in millimetres"),
        ({"baseline": 0.00012}, "the baseline is 0.00012 m"),
        ({"f": 4.2}, r"focal length of 4\.2 px means a field of view of 178\.5 degrees"),
        ({"f": 60000.0}, r"field of view of 0\.6 degrees in images 640 px wide"),
        ({"cx": 1279.0}, r"principal point \(1279, 240\) is far from the centre .* 640 x 480"),
        ({"width": 1242, "height": 375}, "for images of 1242 x 375, these are 640 x 480"),
    ],
)
def test_what_is_implausible_is_told_with_its_numbers(change, message):
    plausible = {"f": 500.0, "cx": 320.0, "cy": 240.0, "baseline": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Calibration(**plausible).for_images(480, 640)
        Calibration(**plausible, width=1280, height=960).for_images(480, 640)
    with pytest.warns(UserWarning, match=message) as told:
        Calibration(**plausible | change).for_images(480, 640)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": 0.0}, "f is 0: expected more than 0"),
        ({"baseline": -0.1}, r"baseline is -0\.1"),
        ({"cx": float("nan")}, "cx is nan"),
        ({"width": 0}, "width is 0: expected more than 0"),
    ],
)
def test_impossible_calibrations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Calibration(**{"f": 500.0, "cx": 320.0, "cy": 240.0, "baseline": 0.1} | change)
