"""Folders of pairs, written here and, where they lie beside the repository, real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.files import IMAGE_SUFFIXES, write_disparity_png, write_image, write_npy, write_pfm

WRITERS = {".npy": write_npy, ".pfm": write_pfm, ".png": write_disparity_png}


def write_pair(folder: Path, image: str = ".png", truth: str = ".npy", shade: int = 50) -> Path:
    for stem, value in (("left", shade), ("right", shade + 1)):
        pixels = np.full((4, 6, 3), value, np.uint8)
        if image == ".pgm":
            folder.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / f"{stem}.pgm"), pixels[..., 0])
        else:
            write_image(folder / f"{stem}{image}", pixels)
    WRITERS[truth.lower()](folder / f"disp{truth}", np.full((4, 6), 2.5, np.float32))
    return folder


@pytest.mark.parametrize("image", [*IMAGE_SUFFIXES, ".JPG", ".Png"])
@pytest.mark.parametrize("truth", [".npy", ".pfm", ".png", ".PFM"])
def test_every_format(tmp_path, image, truth):
    write_pair(tmp_path / "pair", image, truth)
    sample = PairFolder(tmp_path)[0]
    assert sample.name == "pair"
    assert abs(int(sample.left[0, 0, 0]) - 50) <= 2
    assert (sample.disparity == 2.5).all()
    assert sample.valid.all()


def test_pairs_are_sorted_by_name_and_others_left_alone(tmp_path):
    for name in ("b", "a", "left"):
        write_pair(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").touch()
    assert [sample.name for sample in PairFolder(tmp_path)] == ["a", "b", "left"]


def test_root_may_hold_splits(tmp_path):
    for split, name in (("train", "0"), ("train", "1"), ("test", "2")):
        write_pair(tmp_path / split / name)
    assert detect_dataset(tmp_path) == "folder"
    for split, names in (("train", ["0", "1"]), ("test", ["2"])):
        pairs = build_dataset("auto", tmp_path, split=split)
        assert [sample.name for sample in pairs] == names
        assert len(build_dataset("folder", tmp_path / "train", split=split)) == 2


def test_root_may_be_one_pair(tmp_path, monkeypatch):
    write_pair(tmp_path / "pair")
    monkeypatch.chdir(tmp_path / "pair")
    for root in (tmp_path / "pair", "."):
        assert [sample.name for sample in PairFolder(root)] == ["pair"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("disp.npy", "no ground truth"),
        ("right.png", "no right image"),
        ("left.png", "no left image"),
    ],
)
def test_a_missing_file_is_told(tmp_path, file, told):
    write_pair(tmp_path / "a")
    (write_pair(tmp_path / "b") / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"b: {told}.*expected ROOT/NAME"):
        PairFolder(tmp_path)


def test_two_formats_of_one_file_are_ambiguous(tmp_path):
    write_pair(tmp_path / "a")
    write_pair(tmp_path / "a", truth=".pfm")
    with pytest.raises(ValueError, match=r"a: both disp\.npy and disp\.pfm"):
        PairFolder(tmp_path)


def test_two_spellings_of_one_suffix_are_ambiguous(tmp_path):
    write_pair(tmp_path / "a")
    write_pair(tmp_path / "a", image=".PNG")
    with pytest.raises(ValueError, match=r"a: both left\.(png|PNG) and left\.(png|PNG); keep"):
        PairFolder(tmp_path)


def test_pairs_without_truth_where_they_are_asked_for(tmp_path):
    (write_pair(tmp_path / "a") / "disp.npy").unlink()
    write_pair(tmp_path / "b")
    without, with_truth = build_dataset("auto", tmp_path, require_truth=False)
    assert (without.name, without.disparity.any(), without.valid.any()) == ("a", False, False)
    assert with_truth.valid.all()
    with pytest.raises(FileNotFoundError, match="a: no ground truth"):
        build_dataset("auto", tmp_path)
    with pytest.raises(ValueError, match="a/mirrored: no ground truth"):
        PairFolder(tmp_path, require_truth=False).mirrored(0)


def test_an_odd_name_becomes_printable(tmp_path):
    write_pair(tmp_path / os.fsdecode(b"caf\xe9\n"))
    assert [sample.name for sample in PairFolder(tmp_path)] == [r"caf\xe9\n"]


def test_sizes_must_agree(tmp_path):
    write_npy(write_pair(tmp_path / "a") / "disp.npy", np.ones((6, 4), np.float32))
    with pytest.raises(ValueError, match=r"disp\.npy: 4x6 pixels.*left\.png has 6x4"):
        PairFolder(tmp_path)[0]


def test_no_pairs(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no pairs; expected ROOT/NAME"):
            PairFolder(root)


def test_built_by_name_and_recognised(tmp_path):
    write_pair(tmp_path / "a")
    assert detect_dataset(tmp_path) == "folder"
    assert len(build_dataset("folder", tmp_path)) == len(build_dataset("auto", tmp_path)) == 1


def test_optional_mask_and_right_truth(tmp_path):
    folder = write_pair(tmp_path / "a")
    write_pair(tmp_path / "b")
    visible = np.zeros((4, 6, 3), np.uint8)
    visible[1:] = 7
    write_image(folder / "nonocc.png", visible)
    write_pfm(folder / "disp_right.pfm", np.full((4, 6), 3, np.float32))
    dataset = PairFolder(tmp_path)
    assert (dataset[0].masks["nonocc"] == visible[..., 0].astype(bool)).all()
    assert dict(dataset[1].masks) == {}
    assert (dataset.mirrored(0).disparity == 3).all()
    assert dict(dataset.mirrored(0).masks) == {}  # that mask is the left view's
    assert not dataset.has_right_truth
    assert dataset[:1].has_right_truth


def test_a_mask_of_another_size_is_named(tmp_path):
    write_image(write_pair(tmp_path / "a") / "nonocc.png", np.ones((6, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"nonocc\.png: 4x6 pixels.*left\.png has 6x4"):
        PairFolder(tmp_path)[0]


def test_real_pairs(shared_data):
    dataset = PairFolder(shared_data / "stereo")
    assert len(dataset) == 23
    for frame, sample in zip(dataset.frames, dataset, strict=True):
        facts = json.loads((frame.left.parent / "meta.json").read_text(encoding="utf-8"))
        assert sample.disparity.shape == (facts["height"], facts["width"])
        assert sample.valid.mean() == pytest.approx(facts["valid_fraction"], abs=1e-3)
        known = sample.disparity[sample.valid]
        assert known.min() == pytest.approx(facts["min_disparity"])
        assert known.max() == pytest.approx(facts["max_disparity"])
        assert not sample.disparity[~sample.valid].any()
        assert ("nonocc" in sample.masks) == (frame.left.parent / "nonocc.png").is_file()


def test_real_masks_tell_what_both_cameras_see(shared_data):
    masked = 0
    for sample in PairFolder(shared_data / "stereo"):
        if "nonocc" not in sample.masks or sample.name.startswith("ntu_aug"):
            continue  # the colours of those pairs differ too much to compare
        columns = np.arange(sample.disparity.shape[1]) - np.rint(sample.disparity).astype(int)
        seen = np.take_along_axis(sample.right, np.maximum(columns, 0)[..., None], 1)
        error = np.abs(seen.astype(float) - sample.left).mean(axis=2)
        known = sample.valid & (columns >= 0)
        visible, hidden = (
            known & mask for mask in (sample.masks["nonocc"], ~sample.masks["nonocc"])
        )
        if hidden.any():
            assert error[visible].mean() < error[hidden].mean(), sample.name
            masked += 1
    assert masked >= 10


def test_links_have_names_of_their_own(tmp_path):
    for number, name in enumerate(("a", "b")):
        write_pair(tmp_path / "real" / name / "0000", shade=50 + number)
        (tmp_path / "farm").mkdir(exist_ok=True)
        (tmp_path / "farm" / f"scene_{name}").symlink_to(tmp_path / "real" / name / "0000")
    assert [sample.name for sample in PairFolder(tmp_path / "farm")] == ["scene_a", "scene_b"]
