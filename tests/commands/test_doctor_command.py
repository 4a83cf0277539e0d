"""`doctor` and the warnings of `predict`, as a user sees them."""

import json
import re

import cv2
import numpy as np
import pytest
from input_check import turned
from stereo_pairs import textured_pair

from ea_psmnet.__main__ import main
from ea_psmnet.files import read_pfm, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sound pair, and right images that are turned or of another size."""
    path = tmp_path_factory.mktemp("pairs")
    sample = textured_pair(192, 320)
    for name, view in (
        ("left", sample.left),
        ("right", sample.right),
        ("turned", turned(sample.right, 2)),
        ("small", sample.right[:100]),
    ):
        write_image(path / f"{name}.png", view)
    return path


def run(*arguments):
    return main(["doctor", *map(str, arguments)])


def test_a_sound_pair_ends_with_0(folder, capsys):
    assert run(folder / "left.png", folder / "right.png") == 0
    assert capsys.readouterr().out.startswith("nothing found; ")


def test_a_fault_is_one_line_and_ends_with_1(folder, capsys):
    assert run(folder / "right.png", folder / "left.png") == 1
    told = capsys.readouterr().out
    assert told.startswith("swapped: ")
    assert told.count("\n") == 1


def test_json_has_paths_numbers_and_options(folder, capsys):
    assert run(folder / "left.png", folder / "turned.png", "--json") == 1
    record = json.loads(capsys.readouterr().out)
    assert record["right"] == str(folder / "turned.png")
    (found,) = record["findings"]
    assert found["code"] == "unrectified"
    assert found["numbers"]["rotation"] == pytest.approx(2, abs=0.05)
    assert record["options"] == found["options"] == ["--rectify", "auto"]
    assert record["matches"] > 50


def test_json_of_a_sound_pair_has_no_findings(folder, capsys):
    assert run(folder / "left.png", folder / "right.png", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["findings"] == record["options"] == []


def test_scale_widens_the_range(folder, capsys):
    pair = folder / "left.png", folder / "right.png"
    assert run(*pair, "--max-disparity", 12) == 1
    assert capsys.readouterr().out.startswith("range: ")
    assert run(*pair, "--max-disparity", 12, "--scale", 0.5) == 0
    capsys.readouterr()
    assert run(*pair, "--min-disparity", 20, "--scale", 0.5) == 1
    assert "below 20 px" in capsys.readouterr().out
    assert run(*pair, "--scale", "inf") == 2


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("width=320\nheight=192\ndoffs=0\nbaseline=100", 0, "nothing found"),
        ("width=640\nheight=384\ndoffs=0\nbaseline=100", 0, "nothing found"),  # resized since
        ("width=320\nheight=240\ndoffs=0\nbaseline=100", 1, "320 x 240"),
        ("width=320\nheight=192\ndoffs=0\nbaseline=100000", 1, "100 m"),
        ("width=320\nheight=192\ndoffs=-40\nbaseline=100", 1, "-40 px"),
    ],
)
def test_a_calibration_is_checked(folder, tmp_path, capsys, text, code, word):
    calib = tmp_path / "calib.txt"
    camera = "[300 0 160; 0 300 96; 0 0 1]"
    calib.write_text(f"cam0={camera}\ncam1={camera}\n{text}\n")
    assert run(folder / "left.png", folder / "right.png", "--calib", calib) == code
    told = capsys.readouterr().out
    assert word in told
    assert told.count("calibration: ") == code


def test_a_rotation_that_turns_the_scene_away_is_the_fault_of_the_calibration(
    folder, tmp_path, capsys
):
    path = tmp_path / "turned.yml"
    rotation = cv2.Rodrigues(np.array((0, np.pi / 2, 0)))[0]
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name in ("K1", "K2"):
        storage.write(name, np.array(((300.0, 0, 160), (0, 300, 96), (0, 0, 1))))
    storage.write("R", rotation)
    storage.write("T", -rotation @ (0.12, 0, 0))
    storage.release()
    pair = folder / "left.png", folder / "right.png"
    assert run(*pair, "--calib", path) == 1
    told = capsys.readouterr().out
    assert told.startswith("calibration: rectification turns the right image out of view")
    assert "texture" not in told
    assert main(["predict", *map(str, pair), "--calib", str(path), "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("right", "options", "message"),
    [
        ("small.png", (), "the images differ in size"),
        ("none.png", (), "none.png"),
        ("right.png", ("--scale", 0), "expected above 0"),
    ],
)
def test_bad_input_ends_with_2(folder, capsys, right, options, message):
    assert run(folder / "left.png", folder / right, *options) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_predict_warns_and_corrects_if_asked(folder, checkpoint, tmp_path, capsys):
    pair = [str(folder / name) for name in ("left.png", "turned.png")]
    command = ["predict", *pair, "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--name", "pair", "--out"]
    assert main([*command, str(tmp_path / "off")]) == 0
    assert re.search("warning: .* is turned by .*--rectify auto", capsys.readouterr().err)
    assert main([*command, str(tmp_path / "auto"), "--rectify", "auto"]) == 0
    assert re.search("warning: .* is turned by .*corrected", capsys.readouterr().err)
    found = [read_pfm(tmp_path / kind / "pair_disparity.pfm") for kind in ("off", "auto")]
    assert found[0].shape == found[1].shape == (192, 320)
    assert not np.array_equal(*found)
