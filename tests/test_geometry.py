"""Depth, points and their cleaning, against closed forms and real pairs."""

import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import trimesh
from stereo_pairs import FRONT, NEAR, textured_pair

from ea_psmnet.calibration import Calibration
from ea_psmnet.files import (
    read_disparity,
    read_image,
    write_depth_png,
    write_disparity_png,
    write_pfm,
)
from ea_psmnet.geometry import (
    PointCloud,
    depth_map,
    flying_pixels,
    hidden_in_right,
    inconsistent,
)
from ea_psmnet.inference.result import StereoResult

CAMERA = Calibration(650.0, 318.2, 236.7, 0.12, doffs=8.5, width=640, height=480, fy=655.0)


def plane_disparity(normal, distance, camera=CAMERA):
    """Exact disparity of the plane n . x = distance: its points are projected into both cameras."""
    y, x = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    rays = np.stack(((x - camera.cx) / camera.f, (y - camera.cy) / camera.fy, np.ones_like(x)), -1)
    points = rays * (distance / (rays @ normal))[..., None]
    from_right = points - (camera.baseline, 0, 0)
    column = camera.f * from_right[..., 0] / from_right[..., 2] + camera.cx + camera.doffs
    return (x - column).astype(np.float32), points


def grey(disparity):
    return np.full((*disparity.shape, 3), 128, np.uint8)


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.3, -0.2, 0.93)])
def test_points_of_a_plane_lie_on_it(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    disparity, points = plane_disparity(normal, 2.0)
    cloud = StereoResult(disparity, grey(disparity), calibration=CAMERA).points(clean=False)
    assert len(cloud) == disparity.size
    assert np.abs(cloud.points @ normal - 2).max() < 0.5e-3
    assert np.linalg.norm(cloud.points - points.reshape(-1, 3), axis=1).max() < 0.5e-3


def test_depth_through_files_keeps_half_a_millimetre(tmp_path):
    disparity, points = plane_disparity(np.array((0, 0, 1)), 2.0)
    write_pfm(tmp_path / "d.pfm", disparity)
    depth = depth_map(read_disparity(tmp_path / "d.pfm")[0], CAMERA)
    assert np.abs(depth - points[..., 2]).max() < 1e-5
    write_depth_png(tmp_path / "z.png", depth + np.float32(0.0004))
    stored = cv2.imread(str(tmp_path / "z.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert np.unique(stored).tolist() == [2000]
    # KITTI's steps of 1/256 px are 1/512 px off at most, 0.09 mm here.
    write_disparity_png(tmp_path / "d.png", disparity)
    depth = depth_map(read_disparity(tmp_path / "d.png")[0], CAMERA)
    assert np.abs(depth - 2).max() < 2**2 / (CAMERA.f * CAMERA.baseline) / 500


def test_depth_is_infinite_at_infinity_and_unknown_where_disparity_is(tmp_path):
    disparity = np.array(((20, 0, -8.5, -9, np.nan, np.inf),), np.float32)
    depth = depth_map(disparity, CAMERA)
    np.testing.assert_allclose(depth[0, :2], (650 * 0.12 / 28.5, 650 * 0.12 / 8.5), rtol=1e-6)
    assert np.isposinf(depth[0, 2:4]).all()
    assert np.isnan(depth[0, 4:]).all()
    with warnings.catch_warnings(action="error"):
        assert np.isposinf(depth_map(np.full((1, 1), 1e-40), replace(CAMERA, doffs=0)))
    write_depth_png(tmp_path / "z.png", np.array(((65.535, 65.536, np.inf, np.nan, 0, -1, 1e-5),)))
    stored = cv2.imread(str(tmp_path / "z.png"), cv2.IMREAD_UNCHANGED)
    assert stored.tolist() == [[65535, 0, 0, 0, 0, 0, 1]]


def test_only_depths_within_the_limits_become_points():
    disparity = np.array(((20, 10, 5, 2, 0, np.nan),), np.float32)
    image = np.arange(18, dtype=np.uint8).reshape(1, 6, 3)
    camera = Calibration(100, 2, 0, 0.1)  # depths of 0.5, 1, 2 and 5 m
    result = StereoResult(disparity, image, calibration=camera)
    cloud = result.points(clean=False)
    assert cloud.mask.tolist() == [[True, True, True, True, False, False]]
    np.testing.assert_allclose(cloud.points[:, 2], (0.5, 1, 2, 5))
    np.testing.assert_allclose(cloud.points[:, 0], (-0.01, -0.01, 0, 0.05), atol=1e-7)
    assert cloud.colours.tolist() == image[0, :4].tolist()
    cloud = result.points(clean=False, min_depth=1, max_depth=2)
    assert cloud.points[:, 2].tolist() == [1, 2]
    with pytest.raises(ValueError, match="depth from 2 to 1 m"):
        result.points(min_depth=2, max_depth=1)
    with pytest.raises(ValueError, match="depth needs a calibration"):
        StereoResult(disparity, image).points()


# Cleaning -----------------------------------------------------------------------------------------


def test_hidden_pixels_are_those_that_the_renderer_hides():
    pair = textured_pair()
    hidden, seen = hidden_in_right(pair.disparity), pair.masks["nonocc"]
    # Half pixels at the rims of the foreground and of the image round either way.
    wrong = hidden == seen
    wrong[:, :10] = False
    rims = cv2.dilate(hidden.astype(np.uint8), np.ones((1, 5))) & ~cv2.erode(
        hidden.astype(np.uint8), np.ones((1, 5))
    )
    assert not (wrong & (rims == 0)).any()
    assert hidden[50, 55:78].sum() > 15  # beside the rectangle
    assert not hidden[FRONT].any()
    assert hidden[5, :4].all()  # beyond the left border of the right image


def test_a_slanted_surface_has_no_gaps_through_which_others_show():
    x = np.arange(200, dtype=np.float32)
    disparity = np.broadcast_to(np.where(x < 100, 5, 40 - 0.6 * (x - 100)), (4, 200)).copy()
    hidden = hidden_in_right(disparity)
    # The surface spans columns 60 to 99 and beyond in the right image: each of these was there.
    assert hidden[0, 66:99].all()
    assert not hidden[0, 10:64].any()
    assert not hidden[0, 101:180].any()
    assert hidden[0, 190:].all()  # beyond the right border


def test_the_left_right_check_finds_what_the_views_contradict():
    pair = textured_pair()
    mirrored = right_disparity(pair)
    wrong = inconsistent(pair.disparity, mirrored)
    hidden = hidden_in_right(pair.disparity)
    assert (wrong == hidden)[:, 8:].mean() > 0.99
    result = StereoResult(pair.disparity, pair.left, right=mirrored)
    assert np.array_equal(result.occluded, wrong)
    with pytest.raises(ValueError, match="needs the right view"):
        _ = StereoResult(pair.disparity, pair.left).occluded
    mirrored[40, 70] = np.nan
    match = pair.disparity[40] + 70
    assert inconsistent(pair.disparity, mirrored)[40, np.arange(200) == np.rint(match)].all()


def right_disparity(pair):
    """Disparity of the right view, by moving the left one's pixels, nearer ones last."""
    height, width = pair.disparity.shape
    right = np.full((height, width), np.nan, np.float32)
    for row, values in zip(right, pair.disparity, strict=True):
        for x in np.argsort(values, kind="stable"):
            place = x - values[x]
            for column in (int(np.floor(place)), int(np.ceil(place))):
                if 0 <= column < width:
                    row[column] = values[x]
    return right


def test_blended_edges_fly_and_surfaces_do_not():
    x = np.arange(300, dtype=np.float32)
    wall, floor = 60 + 0 * x, 20 + 0.7 * (x - 150)
    row = np.where(x < 150, wall, floor)
    blended = cv2.blur(np.repeat(row[None], 40, 0), (7, 1))
    flying = flying_pixels(blended)
    between = (np.abs(blended - wall) > 1) & (np.abs(blended - floor) > 1)
    assert flying[between & (x < 200)].all()
    rest = np.ones(300, bool)
    rest[142:158] = False
    assert not flying[:, rest].any()


def test_far_edges_fly_too():
    row = np.interp(np.arange(60), (20, 24), (1.0, 3.0)).astype(np.float32)
    flying = flying_pixels(np.repeat(row[None], 5, 0))
    assert flying[:, 21:24].all()
    assert not flying[:, :19].any()
    assert not flying[:, 26:].any()
    assert not flying_pixels(np.repeat(row[None], 5, 0), doffs=200).any()  # not far at all


def test_unknown_pixels_are_no_edges():
    disparity = np.full((5, 9), 12, np.float32)
    disparity[:, 4] = np.nan
    assert not flying_pixels(disparity).any()
    assert not hidden_in_right(disparity)[:, 4].any()


def test_cleaning_uses_all_that_is_known():
    pair = textured_pair()
    camera = Calibration(200, 100, 48, 0.1)
    result = StereoResult(pair.disparity, pair.left, calibration=camera)
    clean, whole = result.points(), result.points(clean=False)
    dropped = whole.mask & ~clean.mask
    assert np.array_equal(dropped, hidden_in_right(pair.disparity) | flying_pixels(pair.disparity))
    confidence = np.full(pair.disparity.shape, 0.9, np.float32)
    confidence[80:] = 0.3
    sure = replace(result, confidence=confidence)
    assert np.array_equal(sure.points().mask, clean.mask & (confidence > 0.5))
    assert np.array_equal(sure.points(min_confidence=0.2).mask, clean.mask)
    assert np.array_equal(sure.points(clean=False).mask, whole.mask)
    checked = replace(result, right=right_disparity(pair))
    assert not (checked.points().mask & checked.occluded).any()
    assert checked.points().points[:, 2].min() == pytest.approx(200 * 0.1 / NEAR)


def test_cleaning_drops_what_is_too_far_to_tell():
    disparity = np.full((6, 30), 0.8, np.float32)
    for doffs, kept in ((0, 0), (0.3, 180)):
        camera = Calibration(200, 15, 3, 0.1, doffs=doffs)
        result = StereoResult(disparity, grey(disparity), calibration=camera)
        assert len(result.points()) == kept - 6 * (kept > 0)  # the first column left the image
        assert len(result.points(clean=False)) == 180


# Files --------------------------------------------------------------------------------------------


def test_clouds_as_files(tmp_path):
    points = np.array(((0.1, 0.2, 1.5), (-0.3, -0.4, 2.5)), np.float32)
    colours = np.array(((255, 128, 0), (12, 200, 64)), np.uint8)
    cloud = PointCloud(points, colours, np.ones((1, 2), bool))
    for suffix in ("ply", "glb"):
        cloud.write(tmp_path / f"cloud.{suffix}")
    assert (tmp_path / "cloud.ply").read_bytes().startswith(b"ply\nformat binary_little_endian")
    ply = trimesh.load(tmp_path / "cloud.ply")
    np.testing.assert_array_equal(ply.vertices.astype(np.float32), points)
    np.testing.assert_array_equal(ply.colors[:, :3], colours)
    (glb,) = trimesh.load(tmp_path / "cloud.glb").geometry.values()
    # Up is up, and what the camera sees lies at -z.
    np.testing.assert_allclose(glb.vertices, points * (1, -1, -1), rtol=1e-6)
    share = colours / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    assert np.abs(glb.colors[:, :3] - 255 * linear).max() <= 0.5


def test_clouds_that_cannot_be_written_are_refused(tmp_path):
    empty = PointCloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no point is left in the cloud"):
        empty.write(tmp_path / "a.ply")
    with pytest.raises(ValueError, match=r"use \.ply or \.glb"):
        empty.write(tmp_path / "a.obj")
    assert list(tmp_path.iterdir()) == []


# Real pairs ---------------------------------------------------------------------------------------

ADIRONDACK = """cam0=[4161.221 0 1445.577; 0 4161.221 984.686; 0 0 1]
cam1=[4161.221 0 1654.636; 0 4161.221 984.686; 0 0 1]
doffs=209.059
baseline=176.252
width=2880
height=1988
"""
"""Middlebury's calibration of Adirondack, whose images are a quarter of that size here."""


def test_a_middlebury_scene_has_its_size(shared_data, tmp_path):
    from ea_psmnet.calibration_files import read_calibration

    folder = shared_data / "stereo" / "mb14_adirondack_q"
    (tmp_path / "calib.txt").write_text(ADIRONDACK)
    image, disparity = read_image(folder / "left.png"), np.load(folder / "disp.npy")
    camera = read_calibration(tmp_path / "calib.txt").for_images(*image.shape[:2])
    result = StereoResult(disparity, image, calibration=camera)
    full = 4161.221 * 0.176252 / (4 * disparity + 209.059)
    np.testing.assert_allclose(result.depth, full, rtol=2e-3)
    cloud = result.points()
    # A mug stands on the arm of the chair; row 130 crosses it, and mugs are 7 to 10 cm wide.
    mug = disparity[130, 345:392] > 20
    depth = result.depth[130, 345:392][mug]
    assert 0.07 < mug.sum() * np.median(depth) / camera.f < 0.10
    assert 1.5 < cloud.points[:, 2].min() < cloud.points[:, 2].max() < 3.2


@pytest.mark.parametrize("name", ["ft3d_train_b_0749_0015", "mb14_adirondack_q", "newtsukuba_1"])
def test_hidden_pixels_of_real_pairs(shared_data, name):
    folder = shared_data / "stereo" / name
    disparity = np.load(folder / "disp.npy")
    hidden = hidden_in_right(disparity)
    occluded = (read_image(folder / "nonocc.png")[..., 0] == 0) & np.isfinite(disparity)
    assert (hidden & occluded).sum() > 0.9 * occluded.sum()
    assert (hidden & occluded).sum() > 0.9 * hidden.sum()
