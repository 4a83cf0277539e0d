"""KITTI's trees: which files belong together, and what is no truth of the right view."""

from __future__ import annotations

import shutil

import pytest
from dataset_trees import kitti2012, kitti2015, write_png

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.kitti import Kitti2012, Kitti2015


def test_the_later_moments_images_are_left_alone(tmp_path):
    dataset = Kitti2015(kitti2015(tmp_path))
    assert len(dataset) == 2
    assert all(path.stem.endswith("_10") for f in dataset.frames for path in (f.left, f.right))


def test_the_later_moments_disparity_is_not_the_right_views(tmp_path):
    dataset = Kitti2015(kitti2015(tmp_path))
    assert (tmp_path / "training/disp_occ_1").is_dir()
    assert not dataset.has_right_truth
    assert dataset[0].disparity.max() == 8.5  # disp_occ_0, not disp_occ_1


def test_grey_images_where_there_are_no_others(tmp_path):
    kitti2012(tmp_path)
    for n in (0, 1):
        shutil.copytree(tmp_path / f"training/colored_{n}", tmp_path / f"training/image_{n}")
    assert [f.left.parts[-2] for f in Kitti2012(tmp_path).frames] == ["colored_0"] * 2
    for n in (0, 1):
        shutil.rmtree(tmp_path / f"training/colored_{n}")
    assert [f.left.parts[-2] for f in Kitti2012(tmp_path).frames] == ["image_0"] * 2


def test_both_years_in_one_folder(tmp_path):
    kitti2012(tmp_path / "KITTI_2012")
    kitti2015(tmp_path / "kitti2015")
    assert "KITTI_2012" in str(build_dataset("kitti2012", tmp_path).frames[0].left)
    assert "kitti2015" in str(build_dataset("kitti2015", tmp_path).frames[0].left)


def test_the_years_are_not_mixed_up(tmp_path):
    kitti2012(tmp_path / "a")
    kitti2015(tmp_path / "b")
    assert detect_dataset(tmp_path / "a") == "kitti2012"
    assert detect_dataset(tmp_path / "b") == "kitti2015"
    with pytest.raises(FileNotFoundError, match=r"image_2: no such folder; understood as KITTI"):
        Kitti2015(tmp_path / "a")


def test_without_the_second_truth_there_is_no_mask(tmp_path):
    kitti2012(tmp_path)
    (tmp_path / "training/disp_noc/000001_10.png").unlink()
    assert [list(sample.masks) for sample in Kitti2012(tmp_path)] == [["nonocc"], []]


def test_eight_bit_truth_is_refused(tmp_path):
    kitti2012(tmp_path)
    write_png(tmp_path / "training/disp_occ/000000_10.png", [[1, 2], [3, 4]], "uint8")
    with pytest.raises(ValueError, match=r"000000_10\.png: 8-bit PNG"):
        Kitti2012(tmp_path)[0]
