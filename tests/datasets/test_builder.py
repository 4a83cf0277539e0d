"""What holds for all datasets alike, and the table that names them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from dataset_trees import FRAMES, SIZE, TREES, shade, truth

from ea_psmnet.datasets.builder import DATASETS, build_dataset, detect_dataset, measuring_split
from ea_psmnet.datasets.names import DatasetName

# Sets whose frames are named in another order than they are numbered here.
NAMES = {
    "sceneflow": ["Monkaa/a_rain_of_stones_x2/left/0000", "Monkaa/eating_x2/left/0000"],
    "kitti2012": ["training/000000_10", "training/000001_10"],
    "kitti2015": ["training/000000_10", "training/000001_10"],
    "middlebury2014": ["Adirondack-perfect", "Bicycle1-perfect"],
    "middlebury2021": ["artroom1", "skates2"],
    "middeval3": ["Adirondack", "ArtL"],
    "eth3d": ["delivery_area_1l", "electro_1l"],
    "sintel": ["alley_1/frame_0001", "bamboo_2/frame_0001"],
    "crestereo": ["tree/7/0001", "hole/0001"],
    "falling-things": ["single/002_master_chef_can_16k/kitchen_0/000003", "mixed/kitchen_0/000003"],
    "instereo2k": ["train/part1/000000", "train/part2/000001"],
    "virtual-kitti": ["Scene01/clone/00002", "Scene01/fog/00002"],
    "tartanair": ["hospital/hospital/Easy/P000/000001", "ocean/ocean/Hard/P000/000001"],
    "tartanair-v2": ["CarWelding/Data_easy/P000/000001", "Ocean/Data_hard/P000/000001"],
    "folder": ["pair0", "pair1"],
    "list": ["pair0", "pair1"],
}
NUMBERS = {"crestereo": (1, 0)}
RIGHT_TRUTH = set(TREES) - {"kitti2012", "kitti2015", "eth3d", "sintel"}
NONOCC = {"kitti2012", "kitti2015", "middeval3", "eth3d", "sintel", "folder", "list"}
TRAIN_ONLY = set(TREES) - {"sceneflow", "instereo2k", "folder", "list"}


def test_names_are_the_table():
    assert set(get_args(DatasetName)) == {*DATASETS, "auto"}
    assert {*TREES, "synthetic"} == set(DATASETS)


@pytest.mark.parametrize("name", TREES)
def test_frames_are_paired_by_name_in_one_order(tmp_path, name):
    root = TREES[name](tmp_path, FRAMES[::-1])
    dataset = build_dataset(name, root)
    assert [sample.name for sample in dataset] == NAMES[name]
    for sample, k in zip(dataset, NUMBERS.get(name, FRAMES), strict=True):
        assert abs(int(sample.left[0, 0, 0]) - shade(k)) <= 1 - (name != "crestereo")
        assert abs(int(sample.right[0, 0, 0]) - shade(k, "right")) <= 1 - (name != "crestereo")


@pytest.mark.parametrize("name", TREES)
def test_units_and_unknown_pixels(tmp_path, name):
    dataset = build_dataset(name, TREES[name](tmp_path))
    for sample, k in zip(dataset, NUMBERS.get(name, FRAMES), strict=True):
        expected = truth(k, unknown=300.25 if name == "sintel" else np.nan)
        known = np.isfinite(expected)
        assert (sample.valid == known).all()
        # Depth is stored in whole steps, the coarsest of them a centimetre.
        assert sample.disparity[known] == pytest.approx(expected[known], rel=1e-3)
        assert not sample.disparity[~known].any()


@pytest.mark.parametrize("name", TREES)
def test_official_masks(tmp_path, name):
    for sample in build_dataset(name, TREES[name](tmp_path)):
        assert ("nonocc" in sample.masks) == (name in NONOCC)
        if name in NONOCC:
            visible = np.ones(SIZE, bool)
            visible[0, 1] = False
            # KITTI's is known with the truth only; Sintel's (0, 0) is out of the frame.
            visible[0, 0] = name not in ("kitti2012", "kitti2015", "sintel")
            assert (sample.masks["nonocc"] == visible).all()


@pytest.mark.parametrize("name", TREES)
def test_mirrored_pairs_have_the_right_views_truth(tmp_path, name):
    dataset = build_dataset(name, TREES[name](tmp_path))
    assert dataset.has_right_truth == (name in RIGHT_TRUTH)
    if name not in RIGHT_TRUTH:
        with pytest.raises(ValueError, match=r"mirrored: no ground truth with this view"):
            dataset.mirrored(0)
        return
    k = NUMBERS.get(name, FRAMES)[1]
    sample, given = dataset.mirrored(1), dataset[1]
    assert sample.name == f"{given.name}/mirrored"
    assert (sample.left == given.right[:, ::-1]).all()
    assert (sample.right == given.left[:, ::-1]).all()
    expected = truth(k, "right")[:, ::-1]
    known = np.isfinite(expected)
    assert (sample.valid == known).all()
    assert sample.disparity[known] == pytest.approx(expected[known], rel=1e-3)


@pytest.mark.parametrize("name", TREES)
def test_a_missing_partner_is_named(tmp_path, name):
    root = TREES[name](tmp_path)
    frame = build_dataset(name, root).frames[0]
    for path in (frame.right, frame.disparity):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError) as error:
            build_dataset(name, root)
        assert str(path.parent if name == "folder" else path.with_suffix("")) in str(error.value)
        path.write_bytes(content)
    assert len(build_dataset(name, root)) == 2


@pytest.mark.parametrize("name", TREES)
def test_auto_recognises_it(tmp_path, name):
    root = TREES[name](tmp_path)
    assert detect_dataset(root) == name
    assert [sample.name for sample in build_dataset("auto", root)] == NAMES[name]


@pytest.mark.parametrize("name", TREES)
def test_suffixes_may_be_capitals(tmp_path, name):
    root = TREES[name](tmp_path)
    for path in [path for path in tmp_path.rglob("*.*") if path.suffix in (".png", ".jpg", ".pfm")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    if name == "list":
        text = root.read_text()
        for suffix in (".png", ".jpg", ".pfm"):
            text = text.replace(suffix, suffix.upper())
        root.write_text(text)
    assert [sample.name for sample in build_dataset("auto", root)] == NAMES[name]


@pytest.mark.parametrize("name", TREES)
def test_it_travels_to_worker_processes(tmp_path, name):
    dataset = build_dataset(name, TREES[name](tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy[1].disparity == dataset[1].disparity).all()


@pytest.mark.parametrize("name", sorted(TRAIN_ONLY))
def test_a_test_split_without_truth_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"split test: .*; choose train"):
        build_dataset(name, TREES[name](tmp_path), split="test")


@pytest.mark.parametrize("name", sorted(TREES))
def test_errors_are_measured_on_the_test_split_if_there_is_one(tmp_path, name):
    root = TREES[name](tmp_path)
    split = measuring_split("auto", root)
    assert split == ("test" if name in ("sceneflow", "instereo2k") else "train")
    if name not in ("sceneflow", "instereo2k"):  # these trees have training pairs alone
        assert len(build_dataset("auto", root, split=split)) == 2


def test_options_go_to_the_reader(tmp_path):
    TREES["middeval3"](tmp_path, size="H")
    root = TREES["middeval3"](tmp_path, size="F")
    with pytest.raises(ValueError, match="resolutions F, H; choose one by resolution="):
        build_dataset("middeval3", root)
    dataset = build_dataset("middeval3", root, resolution="H")
    assert dataset.frames[0].left.parts[-3] == "trainingH"


def test_unknown_options_are_told_with_those_there_are(tmp_path):
    root = TREES["middeval3"](tmp_path)
    with pytest.raises(ValueError, match="size: no option of middeval3, which takes resolution, "):
        build_dataset("middeval3", root, size=1)
    with pytest.raises(ValueError, match="seed: no option of folder, which takes require_truth"):
        build_dataset("folder", TREES["folder"](tmp_path / "pairs"), seed=1)
    with pytest.raises(ValueError, match=r"sede: no option of synthetic, which takes .*\bseed\b"):
        build_dataset("synthetic", sede=1)
    with pytest.raises(ValueError, match="render_pass='final': middeval3 has no render passes"):
        build_dataset("middeval3", root, render_pass="final")


def test_what_is_no_dataset_is_told(tmp_path):
    with pytest.raises(ValueError, match="'kitty': choose from list, sceneflow, kitti2012"):
        build_dataset("kitty", tmp_path)
    with pytest.raises(ValueError, match="folder: needs the folder"):
        build_dataset("folder")
    (tmp_path / "training" / "image_2").mkdir(parents=True)
    with pytest.raises(ValueError, match="training: no known layout"):
        detect_dataset(tmp_path / "training")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        detect_dataset(tmp_path / "nowhere")


def test_a_folder_too_high_or_too_low_is_told_which_one_it_should_be(tmp_path):
    root = TREES["kitti2015"](tmp_path / "a/b")
    for wrong in (root.parent, root / "training", root / "training/image_2"):
        with pytest.raises(ValueError, match=f"no known layout, though {root} holds kitti2015;"):
            detect_dataset(wrong)


@pytest.mark.parametrize("closed", ["lost+found", "train"])
def test_a_folder_that_cannot_be_read_is_no_pair(tmp_path, monkeypatch, closed):
    root = TREES["folder"](tmp_path / "disk")
    (root / closed).mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != closed and access(path, mode)
    )
    iterdir = Path.iterdir

    def listed(folder):
        if folder.name == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listed)
    assert detect_dataset(root) == "folder"
    assert len(build_dataset("folder", root)) == 2


def test_the_folder_of_a_resolution_is_known_from_within(tmp_path, monkeypatch):
    root = TREES["middeval3"](tmp_path)
    (place,) = root.rglob("training?")
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    for inside in (".", tmp_path / "link"):
        assert detect_dataset(inside) == "middeval3"
        assert len(build_dataset("middeval3", inside)) == 2


def test_pairs_of_training_alone_are_measured_on_them(tmp_path):
    root = tmp_path / "scenes"
    TREES["folder"](root / "train")
    assert measuring_split("auto", root) == "train"
    TREES["folder"](root / "test")
    assert measuring_split("auto", root) == "test"


def test_two_datasets_in_one_folder_are_both_told(tmp_path):
    root = TREES["kitti2015"](TREES["kitti2012"](tmp_path))
    with pytest.raises(ValueError, match=r"holds kitti2012 and kitti2015; choose one by its name"):
        detect_dataset(root)
    TREES["eth3d"](TREES["middeval3"](tmp_path / "more"))
    with pytest.raises(ValueError, match=r"more: holds middeval3 and eth3d; .*--data middeval3"):
        build_dataset("auto", tmp_path / "more")
    assert detect_dataset(tmp_path / "more/MiddEval3/trainingQ") == "middeval3"


def test_scenes_of_middlebury_2014_are_none_of_2021(tmp_path):
    TREES["middlebury2014"](TREES["middlebury2021"](tmp_path) / "data")
    for root in (tmp_path, tmp_path / "data"):
        assert [s.name for s in build_dataset("middlebury2021", root)] == ["artroom1", "skates2"]
    with pytest.raises(FileNotFoundError, match="no scenes; understood as Middlebury 2021"):
        build_dataset("middlebury2021", TREES["middlebury2014"](tmp_path / "other"))


def test_pairs_beside_a_folder_say_nothing_of_it(tmp_path):
    TREES["folder"](tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other: no known layout; expected"):
        detect_dataset(tmp_path / "other")
