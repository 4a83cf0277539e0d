"""Rendered scenes on disk: Scene Flow's layout, one folder one series, errors in one line."""

import json
import traceback
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ea_psmnet.commands.render import render
from ea_psmnet.datasets.sceneflow import SceneFlow
from ea_psmnet.datasets.synthetic import RenderedScene, SyntheticScenes, write_sceneflow
from ea_psmnet.files import read_disparity, read_pfm

SIZE = (32, 48)
PART = "FlyingThings3D"


def series(split: str = "train", count: int = 1, **settings) -> SyntheticScenes:
    settings = {"size": SIZE, "supersample": 1, "max_disparity": 32} | settings
    return SyntheticScenes(split=split, count=count, **settings)


def write(root: Path, train: int = 1, test: int = 1, workers: int = 0, **settings) -> int:
    return write_sceneflow(
        root,
        train=series("train", train, **settings),
        test=series("test", test, **settings),
        workers=workers,
        progress=False,
    )


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_written_tree_has_the_layout_of_sceneflow(tmp_path: Path) -> None:
    assert write(tmp_path, train=2, test=1, workers=2) == 3
    assert files(tmp_path).keys() == {"scenes.json"} | {
        f"{PART}/{folder}/{part}/{side}/0006.{suffix}"
        for folder, suffix in (("frames_cleanpass", "png"), ("disparity", "pfm"))
        for part in ("TRAIN/A/0000", "TRAIN/A/0001", "TEST/A/0000")
        for side in ("left", "right")
    }
    truth = tmp_path / PART / "disparity/TEST/A/0000/left/0006.pfm"
    rendered = series("test").render(0)
    np.testing.assert_array_equal(read_pfm(truth), rendered.disparity_left)
    image = tmp_path / PART / "frames_cleanpass/TEST/A/0000/right/0006.png"
    np.testing.assert_array_equal(cv2.imread(str(image))[..., ::-1], rendered.right)
    for sample, scene in zip(SceneFlow(tmp_path), series(count=2), strict=True):
        np.testing.assert_array_equal(sample.left, scene.left)
        np.testing.assert_array_equal(sample.disparity, scene.disparity)


def test_a_stopped_run_is_taken_up_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = files(tmp_path)
    (tmp_path / PART / "disparity/TEST/A/0000/left/0006.pfm").unlink()
    assert write(tmp_path) == 1
    assert files(tmp_path) == before
    assert write(tmp_path) == 0


def test_no_scene_is_in_both_splits_however_a_folder_grows(tmp_path: Path) -> None:
    for train in (1, 2):
        write(tmp_path, train=train)
    images = [data for name, data in files(tmp_path).items() if name.endswith("left/0006.png")]
    assert len(images) == len(set(images)) == 3


def test_the_command_writes_both_splits(tmp_path: Path) -> None:
    render(out=tmp_path, train=1, test=1, size=SIZE, max_disparity=32, workers=0)
    samples = [SceneFlow(tmp_path, split=split)[0] for split in ("train", "test")]
    for sample, split in zip(samples, ("train", "test"), strict=True):
        streamed = series(split, supersample=2)[0]
        np.testing.assert_array_equal(sample.left, streamed.left)
    with pytest.raises(ValueError, match="train is -1, expected 0 to 1000000"):
        render(out=tmp_path, train=-1)
    with pytest.raises(FileNotFoundError, match="expected image files to use as textures"):
        render(out=tmp_path / "new", textures=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"size": (48, 32)}, r"size \[32, 48\], not \[48, 32\]"),
        ({"max_disparity": 64}, "max_disparity 32, not 64"),
        ({"kind": "bare"}, "kind None, not bare"),
        ({"noise": False, "seed": 2}, "seed 0, not 2 and noise True, not False"),
    ],
)
def test_a_folder_holds_scenes_of_one_kind(tmp_path: Path, other: dict, told: str) -> None:
    write(tmp_path, train=1, test=0)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"{told}; give the same settings or another"):
        write(tmp_path, train=2, **other)
    assert files(tmp_path) == before


def test_settings_are_told_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SyntheticScenes, number: int) -> RenderedScene:
        raise OSError("no more")

    monkeypatch.setattr(SyntheticScenes, "render", fail)
    with pytest.raises(OSError, match="no more"):
        write(tmp_path)
    assert files(tmp_path).keys() == {"scenes.json"}
    assert json.loads((tmp_path / "scenes.json").read_text()) == series().settings


def test_folders_of_other_origin_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "released" / PART).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"other origin .*choose another folder"):
        write(tmp_path / "released")
    for text in ("{", "", "null", '[["seed", 0]]', "[" * 9999):
        (tmp_path / "scenes.json").write_text(text)
        with pytest.raises(ValueError, match=r"scenes\.json: .*; damaged: choose another"):
            write(tmp_path)
    assert len(files(tmp_path)) == 1


def test_arguments_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(ValueError, match="workers is -1, expected 0 to 1024"):
        write(root, workers=-1)
    with pytest.raises(ValueError, match="test: scenes of the train split, expected test"):
        write_sceneflow(root, train=series(), test=series())
    with pytest.raises(ValueError, match="test: scenes with seed 1, not 0 as in train"):
        write_sceneflow(root, train=series(), test=series("test", seed=1))
    with pytest.raises(FileNotFoundError, match="expected image files"):
        write(root, textures=tmp_path / "nowhere")
    assert not root.exists()


def test_what_sees_no_solid_is_written_as_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SyntheticScenes.render

    def with_holes(self: SyntheticScenes, number: int) -> RenderedScene:
        rendered = whole(self, number)
        holes = rendered.object_left.copy(), rendered.object_right.copy()
        holes[0][3, 5] = holes[1][7, 9] = -1
        return replace(rendered, object_left=holes[0], object_right=holes[1])

    monkeypatch.setattr(SyntheticScenes, "render", with_holes)
    write(tmp_path, test=0)
    for side, hole in (("left", (3, 5)), ("right", (7, 9))):
        path = tmp_path / PART / f"disparity/TRAIN/A/0000/{side}/0006.pfm"
        assert read_pfm(path)[hole] == np.inf
        valid = read_disparity(path)[1]
        assert not valid[hole]
        assert valid.sum() == valid.size - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_come_in_one_line(tmp_path: Path, workers: int) -> None:
    (tmp_path / PART / "frames_cleanpass/TRAIN/A").mkdir(parents=True)
    blocked = tmp_path / PART / "frames_cleanpass/TRAIN/A/0001"
    blocked.write_text("in the way")
    (tmp_path / "scenes.json").write_text(json.dumps(series().settings))
    with pytest.raises(OSError, match=r"left/0006\.png: not written") as caught:
        write(tmp_path, train=3, workers=workers)
    assert len(str(caught.value).splitlines()) == 1
    assert str(blocked) in str(caught.value)
    assert "in worker process" not in "".join(traceback.format_exception(caught.value))
