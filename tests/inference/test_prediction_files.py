"""The files of a prediction: all or none, named after the pair, and not another's."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.calibration import Calibration
from ea_psmnet.files import read_disparity, read_image, read_pfm, write_image
from ea_psmnet.inference import prediction_files as files
from ea_psmnet.inference.outputs import preview
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.pair_lists import pair_name

PAIR = {"left": {"path": "l.png", "sha256": "0"}, "right": {"path": "r.png", "sha256": "1"}}


def test_prediction_files_hold_the_disparity(tmp_path, left, disparity):
    paths = files.write_prediction(
        tmp_path / "new", "scene.01", StereoResult(disparity, left), PAIR
    )
    assert [path.name for path in paths] == [
        *("scene.01_disparity.pfm", "scene.01_disparity.png"),
        *("scene.01_preview.png", "scene.01_pair.json"),
    ]
    assert np.array_equal(read_pfm(paths[0]), disparity)
    assert np.abs(read_disparity(paths[1])[0] - disparity).max() <= 1 / 512
    assert np.array_equal(read_image(paths[2]), preview(left, disparity, name="scene.01"))
    written = {"outputs": {"disparity": "written", "preview": "written"}}
    assert json.loads(paths[3].read_text()) == PAIR | written
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)


def test_only_what_is_asked_for_is_written(tmp_path, left, disparity):
    result = StereoResult(disparity, left)
    paths = files.write_prediction(tmp_path, "x", result, PAIR, ("preview", "preview"))
    assert [path.name for path in paths] == ["x_preview.png", "x_pair.json"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    other = {**PAIR, "left": {"path": "other.png", "sha256": "2"}}
    with pytest.raises(FileExistsError, match="x_preview"):
        files.check_unclaimed(tmp_path, "x", other)
    with pytest.warns(UserWarning, match=r"x_preview\.png: belongs to another pair; .*: 1$"):
        files.write_prediction(tmp_path, "x", result, other, ("disparity",))
    with pytest.raises(ValueError, match=r"output.*'depht'"):
        files.write_prediction(tmp_path, "y", result, PAIR, ("depht",))


def test_a_failed_write_names_the_file_that_was_wanted(tmp_path, left, disparity, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_prediction(tmp_path, "scene", StereoResult(disparity, left), PAIR)
    assert str(error.value).startswith(f"{tmp_path}/scene_disparity.pfm: not written")


@pytest.mark.parametrize(
    "failing", ["write_pfm", "write_disparity_png", "write_image", "write_json"]
)
def test_a_failed_write_leaves_none_of_them(tmp_path, left, disparity, failing, monkeypatch):
    def full_disk(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_prediction(tmp_path, "scene", StereoResult(disparity, left), PAIR)
    assert list(tmp_path.iterdir()) == []


def test_a_blocked_name_leaves_none_of_them(tmp_path, left, disparity):
    (tmp_path / "scene_preview.png").mkdir()
    with pytest.raises(OSError, match=r"scene_preview\.png: not written") as error:
        files.write_prediction(tmp_path, "scene", StereoResult(disparity, left), PAIR)
    assert str(error.value).count("not written") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scene_preview.png"]


def test_sizes_must_agree(tmp_path, left, disparity):
    with pytest.raises(ValueError, match="differ"):
        files.write_prediction(tmp_path, "scene", StereoResult(disparity[1:], left), PAIR)


def test_another_pairs_results_are_left_alone(tmp_path, left, disparity):
    for folder in ("a", "b", "copy of a"):
        write_image(tmp_path / folder / "left.png", left[:, :, :: -1 if folder == "b" else 1])
        write_image(tmp_path / folder / "right.png", left)
    first, other, same = (
        files.pair_record(tmp_path / name / "left.png", tmp_path / name / "right.png")
        for name in ("a", "b", "copy of a")
    )
    out = tmp_path / "out"
    files.check_unclaimed(out, "x", first)
    paths = files.write_prediction(out, "x", StereoResult(disparity, left), first)
    for again in (first, same):
        files.check_unclaimed(out, "x", again)
    write_image(tmp_path / "a" / "left.png", left // 2)  # taken anew: still that pair
    paths_alone = files.pair_record(tmp_path / "a" / "left.png", tmp_path / "a" / "right.png")
    files.check_unclaimed(out, "x", paths_alone)
    with pytest.raises(FileExistsError, match=r"x_disparity\.pfm: exists and is not of this pair"):
        files.check_unclaimed(out, "x", other)
    for damage in ("[]", "{", '{"left": 3}'):
        paths[-1].write_text(damage)
        with pytest.raises(FileExistsError, match="give another --name or --out, or --force"):
            files.check_unclaimed(out, "x", first)


def test_the_record_appears_last(tmp_path, left, disparity, monkeypatch):
    """If the files before it cannot be put in place, it must not vouch for earlier ones."""
    moved, replace = [], os.replace

    def replacing(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    pair = {side: {"path": side, "sha256": side} for side in ("left", "right")}
    paths = files.write_prediction(tmp_path, "x", StereoResult(disparity, left), pair)
    moved = [name for name in moved if name.startswith("x_")]
    assert sorted(moved) == sorted(path.name for path in paths)
    assert moved[-1] == "x_pair.json"


def test_a_name_that_is_no_utf8_is_known_again(tmp_path, left, disparity):
    view = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write_image(view, left)
    pair = files.pair_record(view, view)
    files.write_prediction(tmp_path, pair_name(view, view), StereoResult(disparity, left), pair)
    write_image(view, left // 2)  # told by its path alone
    files.check_unclaimed(tmp_path, view.stem, files.pair_record(view, view))


def test_disparities_beyond_16_bits_are_told(tmp_path, left, disparity):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.write_prediction(tmp_path, "x", StereoResult(disparity + 225, left), PAIR)
    with pytest.warns(UserWarning, match=r"331 pixels \(34\.5%\) exceed 255\.99") as told:
        files.write_prediction(
            tmp_path, "x", StereoResult(np.where(disparity > 20, 300, disparity), left), PAIR
        )
    assert "x_disparity.pfm has them" in str(told[0].message)


def test_depths_beyond_16_bits_are_told(tmp_path, left, disparity):
    camera = Calibration(1000, 20, 12, 1.0)  # 33 m to 1 km
    result = StereoResult(disparity, left, calibration=camera)
    over = (1000 / disparity > 65.535).sum()
    with pytest.warns(UserWarning, match=rf"{over} pixels .* exceed 65\.5.* x_depth\.pfm has them"):
        files.write_prediction(tmp_path, "x", result, PAIR, ("depth",))
    with pytest.raises(ValueError, match="depth needs a calibration"):
        files.write_prediction(tmp_path, "y", StereoResult(disparity, left), PAIR, ("depth",))
    assert not list(tmp_path.glob("*y_*"))
