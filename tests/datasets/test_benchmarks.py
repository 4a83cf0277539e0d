"""Middlebury, ETH3D and Sintel: resolutions, rectifications, exposures, passes and masks."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from dataset_trees import SIZE, eth3d, middeval3, middlebury2014, shade, sintel, write_png

from ea_psmnet.datasets.builder import build_dataset, dataset_entry, detect_dataset
from ea_psmnet.datasets.middlebury import Eth3d, MiddEval3, Middlebury2014
from ea_psmnet.datasets.sintel import Sintel
from ea_psmnet.files import write_image


def test_rectifications(tmp_path):
    middlebury2014(tmp_path)
    assert [f.name for f in Middlebury2014(tmp_path, calibration="imperfect").frames] == [
        "Adirondack-imperfect",
        "Bicycle1-imperfect",
    ]
    both = Middlebury2014(tmp_path, calibration="both")
    assert [f.name for f in both.frames] == [
        f"{scene}-{kind}"
        for scene in ("Adirondack", "Bicycle1")
        for kind in ("imperfect", "perfect")
    ]
    assert both[0].left[0, 0, 0] == shade(5)
    for folder in tmp_path.rglob("*-perfect"):
        shutil.rmtree(folder)
    assert len(build_dataset("auto", tmp_path)) == 2  # imperfect ones, if there are no others


def test_exposures_change_the_right_image_only(tmp_path):
    middlebury2014(tmp_path)
    for right, k in (("im1E", 10), ("im1L", 15)):
        sample = build_dataset("middlebury2014", tmp_path, right=right)[0]
        assert sample.left[0, 0, 0] == shade(0)
        assert sample.right[0, 0, 0] == shade(k, "right")
    with pytest.raises(ValueError, match="unknown right 'im0': choose from im1, im1E, im1L"):
        Middlebury2014(tmp_path, right="im0")


def test_scenes_in_folders_of_splits(tmp_path):
    middlebury2014(tmp_path / "train")
    assert detect_dataset(tmp_path) == "middlebury2014"
    names = [f.name for f in Middlebury2014(tmp_path).frames]
    assert names == ["train/Adirondack-perfect", "train/Bicycle1-perfect"]


def test_resolutions(tmp_path):
    middeval3(tmp_path, size="Q")
    assert len(MiddEval3(tmp_path)) == 2  # the only one there
    assert len(MiddEval3(tmp_path / "MiddEval3", resolution="Q")) == 2
    assert len(MiddEval3(tmp_path / "MiddEval3/trainingQ")) == 2
    assert detect_dataset(tmp_path / "MiddEval3/trainingQ") == "middeval3"
    for root, sizes in ((tmp_path / "MiddEval3/trainingQ", ["Q"]), (tmp_path, ["F", "H", "Q"])):
        variants = dataset_entry("middeval3").variants(root)
        assert [options["resolution"] for options in variants] == sizes
    with pytest.raises(FileNotFoundError, match="trainingF: no such folder; understood as MiddEv"):
        MiddEval3(tmp_path, resolution="F")
    with pytest.raises(ValueError, match="unknown resolution 'f': choose from F, H, Q"):
        MiddEval3(tmp_path, resolution="f")
    with pytest.raises(FileNotFoundError, match="nowhere: no training images"):
        MiddEval3(tmp_path / "nowhere")


def test_hidden_and_unknown_are_no_nonocc(tmp_path):
    middeval3(tmp_path)
    values = np.array([[255, 128, 0, 255, 255, 255]] * SIZE[0])
    write_png(tmp_path / "MiddEval3/trainingQ/Adirondack/mask0nocc.png", values, np.uint8)
    assert (MiddEval3(tmp_path)[0].masks["nonocc"] == (values == 255)).all()


def test_the_right_views_mask_goes_with_its_truth(tmp_path):
    middeval3(tmp_path)
    values = np.full(SIZE, 255)
    values[2, 1] = 128
    write_png(tmp_path / "MiddEval3/trainingQ/Adirondack/mask1nocc.png", values, np.uint8)
    mask = MiddEval3(tmp_path).mirrored(0).masks["nonocc"]
    assert np.argwhere(~mask).tolist() == [[2, SIZE[1] - 2]]


def test_truth_beside_the_images(tmp_path):
    eth3d(tmp_path)
    for path in sorted(tmp_path.glob("two_view_training_gt/*/*")):
        path.rename(tmp_path / "two_view_training" / path.parent.name / path.name)
    for folder in (*tmp_path.glob("two_view_training_gt/*"), tmp_path / "two_view_training_gt"):
        folder.rmdir()
    assert [list(sample.masks) for sample in Eth3d(tmp_path)] == [["nonocc"]] * 2
    unpacked = (tmp_path / "two_view_training").rename(tmp_path / "unpacked in one place")
    assert detect_dataset(unpacked) == "eth3d"
    assert [sample.name for sample in Eth3d(unpacked)] == ["delivery_area_1l", "electro_1l"]


def test_passes_of_sintel(tmp_path):
    sintel(tmp_path / "Sintel")
    assert Sintel(tmp_path, render_pass="final")[0].left[0, 0, 0] == shade(10)
    both = build_dataset("sintel", tmp_path, render_pass="both")
    assert [f.name for f in both.frames] == [
        f"{kind}/{scene}/frame_0001"
        for kind in ("clean", "final")
        for scene in ("alley_1", "bamboo_2")
    ]


def test_sintel_tells_what_is_out_of_the_frame(tmp_path):
    sample = Sintel(sintel(tmp_path))[0]
    assert np.argwhere(~sample.masks["in_frame"]).tolist() == [[0, 0]]
    assert np.argwhere(~sample.masks["nonocc"]).tolist() == [[0, 0], [0, 1]]
    assert sample.valid.all()
    assert sample.disparity[0, 0] == 300.25  # the truth goes on beyond the border


def test_sintels_colours_of_both_depths(tmp_path):
    sintel(tmp_path)
    coded = np.full((*SIZE, 3), (3, 5, 2), np.uint8)  # 2 * 4 + 5 / 64 + 3 / 16384
    write_image(tmp_path / "training/disparities/alley_1/frame_0001.png", coded[..., ::-1].copy())
    expected = np.float32(8 + 5 / 64 + 3 / 16384)
    assert (Sintel(tmp_path)[0].disparity == expected).all()


def test_sintel_truth_without_colours_is_refused(tmp_path):
    path = sintel(tmp_path) / "training/disparities/alley_1/frame_0001.png"
    write_png(path, np.ones(SIZE))
    with pytest.raises(ValueError, match=r"frame_0001\.png: expected disparity in the colours"):
        Sintel(tmp_path)[0]


def test_masks_of_different_sizes_are_named(tmp_path):
    path = sintel(tmp_path) / "training/outofframe/alley_1/frame_0001.png"
    write_png(path, np.zeros((3, 3)), np.uint8)
    with pytest.raises(ValueError, match=r"outofframe/alley_1/frame_0001\.png"):
        Sintel(tmp_path)[0]


def test_masks_of_two_sizes_are_told_with_both_paths(tmp_path):
    root = sintel(tmp_path)
    write_png(root / "training/occlusions/alley_1/frame_0001.png", np.zeros((3, 6)), np.uint8)
    told = r"occlusions/alley_1/frame_0001\.png: 6x3 pixels, but .*outofframe.* has 6x4; a frame's"
    with pytest.raises(ValueError, match=told):
        Sintel(tmp_path)[0]


def test_a_mask_of_floats_is_told(tmp_path):
    path = middeval3(tmp_path) / "MiddEval3/trainingQ/Adirondack/mask0nocc.png"
    path.write_bytes(cv2.imencode(".tiff", np.ones(SIZE, np.float32))[1].tobytes())
    with pytest.raises(ValueError, match=r"mask0nocc\.png: mask of float32 values, expected 8"):
        MiddEval3(tmp_path)[0]
