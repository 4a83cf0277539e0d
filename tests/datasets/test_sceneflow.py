"""Scene Flow: frames found by name in trees written here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.sceneflow import SceneFlow
from ea_psmnet.files import write_image, write_pfm

SIZE = (4, 6)

TRAIN = (
    "FlyingThings3D/{}/TRAIN/A/0000/{}/0006",
    "FlyingThings3D/{}/TRAIN/A/0000/{}/0007",
    "FlyingThings3D/{}/TRAIN/B/0001/{}/0006",
    "Monkaa/{}/a_rain_of_stones_x2/{}/0000",
    "Driving/{}/15mm_focallength/scene_backwards/fast/{}/0001",
)
TEST = ("FlyingThings3D/{}/TEST/A/0000/{}/0006",)


def write_frame(root: Path, frame: str, shade: int, suffix: str = ".png") -> None:
    """Clean pass: left `shade`, right `shade` + 1, disparity `shade`; final pass 100 more."""
    for render_pass, brighter in (("clean", 0), ("final", 100)):
        for view, value in (("left", shade), ("right", shade + 1)):
            path = root / (frame.format(f"frames_{render_pass}pass", view) + suffix)
            write_image(path, np.full((*SIZE, 3), value + brighter, np.uint8))
    for view, sign in (("left", 1), ("right", -1)):
        path = root / (frame.format("disparity", view) + ".pfm")
        write_pfm(path, np.full(SIZE, sign * shade, np.float32))


def write_tree(root: Path, frames: Iterable[str] = (*TRAIN, *TEST), suffix: str = ".png") -> Path:
    for shade, frame in enumerate(frames):
        write_frame(root, frame, 10 * (shade + 1), suffix)
    return root


def names(frames: Iterable[str]) -> list[str]:
    """Frame names as the reader gives them: without the pass."""
    return [frame.replace("/{}/", "/", 1).format("left") for frame in frames]


@pytest.mark.parametrize("above", [".", "SceneFlow"])
def test_train_is_all_parts_in_a_fixed_order(tmp_path, above):
    write_tree(tmp_path / above)
    dataset = SceneFlow(tmp_path)
    assert [frame.name for frame in dataset.frames] == names(TRAIN)
    assert len(dataset) == len(TRAIN)
    for shade, sample in enumerate(dataset):
        value = 10 * (shade + 1)
        assert (sample.left == value).all()
        assert (sample.right == value + 1).all()
        assert (sample.disparity == value).all()
        assert sample.valid.all()


def test_test_split_is_flyingthings_only(tmp_path):
    dataset = SceneFlow(write_tree(tmp_path), split="test")
    assert [sample.name for sample in dataset] == names(TEST)


def test_final_pass_shares_the_truth(tmp_path):
    sample = SceneFlow(write_tree(tmp_path), render_pass="final")[0]
    assert (sample.left == 110).all()
    assert (sample.disparity == 10).all()


def test_order_does_not_depend_on_creation(tmp_path):
    forwards = SceneFlow(write_tree(tmp_path / "a", TRAIN))
    backwards = SceneFlow(write_tree(tmp_path / "b", reversed(TRAIN)))
    assert [f.name for f in forwards.frames] == [f.name for f in backwards.frames]


def test_any_subset_of_parts_will_do(tmp_path):
    dataset = SceneFlow(write_tree(tmp_path, TRAIN[3:]))
    assert [frame.name for frame in dataset.frames] == names(TRAIN[3:])


def test_a_root_named_left_is_left_alone(tmp_path):
    root = write_tree(tmp_path / "left_right" / "left")
    sample = SceneFlow(root)[0]
    assert (sample.right == sample.left + 1).all()


def test_webp_images(tmp_path):
    sample = SceneFlow(write_tree(tmp_path, suffix=".webp"))[-1]
    assert np.abs(sample.left.astype(int) - 50).max() <= 2


def test_foreign_files_are_ignored(tmp_path):
    write_tree(tmp_path)
    folder = tmp_path / "Monkaa/frames_cleanpass/a_rain_of_stones_x2/left"
    (folder / "._0000.png").touch()
    (folder / "Thumbs.db").touch()
    assert len(SceneFlow(tmp_path)) == len(TRAIN)


def test_a_wrong_negative_disparity_stays_unknown(tmp_path):
    write_tree(tmp_path)
    truth = np.full(SIZE, 3, np.float32)
    truth[0, 0], truth[1, 1] = -3, np.nan
    write_pfm(tmp_path / (TRAIN[0].format("disparity", "left") + ".pfm"), truth)
    sample = SceneFlow(tmp_path)[0]
    assert (~sample.valid).sum() == 2
    assert sample.disparity[0, 0] == sample.disparity[1, 1] == 0


@pytest.mark.parametrize(
    "missing",
    [
        TRAIN[0].format("frames_cleanpass", "left") + ".png",
        TRAIN[0].format("frames_cleanpass", "right") + ".png",
        TRAIN[3].format("disparity", "left") + ".pfm",
    ],
)
def test_a_missing_partner_is_named(tmp_path, missing):
    write_tree(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        SceneFlow(tmp_path)
    assert str(tmp_path / missing).removesuffix(".png") in str(error.value)
    assert "as released" in str(error.value)


def test_truth_without_images_is_no_frame(tmp_path):
    write_tree(tmp_path)
    for view in ("left", "right"):
        (tmp_path / (TRAIN[1].format("frames_cleanpass", view) + ".png")).unlink()
    assert len(SceneFlow(tmp_path)) == len(TRAIN) - 1


def test_a_part_without_the_split_is_an_error(tmp_path):
    write_tree(tmp_path, (*TEST, TRAIN[3]))
    with pytest.raises(FileNotFoundError, match="TRAIN: no such folder"):
        SceneFlow(tmp_path)
    with pytest.raises(FileNotFoundError, match="no part of Scene Flow's test split"):
        SceneFlow(write_tree(tmp_path / "monkaa", TRAIN[3:]), split="test")


def test_no_frames_and_no_folder_are_errors(tmp_path):
    (tmp_path / "Monkaa/frames_cleanpass").mkdir(parents=True)
    (tmp_path / "Monkaa/disparity").mkdir()
    with pytest.raises(FileNotFoundError, match="frames_cleanpass: no images called"):
        SceneFlow(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no part"):
        SceneFlow(tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["disparity", "right"])
def test_a_wrong_size_names_the_file(tmp_path, place):
    write_tree(tmp_path)
    if place == "disparity":
        path = tmp_path / (TRAIN[0].format("disparity", "left") + ".pfm")
        write_pfm(path, np.ones((3, 5), np.float32))
    else:
        path = tmp_path / (TRAIN[0].format("frames_cleanpass", "right") + ".png")
        write_image(path, np.zeros((3, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"5x3 pixels.*6x4") as error:
        SceneFlow(tmp_path)[0]
    assert str(path) in str(error.value)


def test_choices_are_checked(tmp_path):
    write_tree(tmp_path)
    with pytest.raises(ValueError, match="unknown split 'val': choose from train, test"):
        SceneFlow(tmp_path, split="val")
    with pytest.raises(ValueError, match="choose from clean, final, both"):
        SceneFlow(tmp_path, render_pass="cleanpass")


def test_slices_and_negative_indices(tmp_path):
    dataset = SceneFlow(write_tree(tmp_path))
    assert [sample.name for sample in dataset[1:3]] == names(TRAIN[1:3])
    assert dataset[-1].name == names(TRAIN)[-1]
    with pytest.raises(IndexError):
        dataset[len(TRAIN)]


def test_built_by_name_and_recognised(tmp_path):
    write_tree(tmp_path / "SceneFlow")
    assert detect_dataset(tmp_path) == "sceneflow"
    assert len(build_dataset("auto", tmp_path)) == len(TRAIN)
    assert len(build_dataset("sceneflow", tmp_path, split="test", render_pass="final")) == 1
