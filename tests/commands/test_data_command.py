"""`data`: what a person types, from rendering to checking and looking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stereo_pairs import textured_pair, warped

from ea_psmnet.__main__ import main
from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.datasets.sceneflow import SceneFlow
from ea_psmnet.files import read_image, write_image, write_pfm
from ea_psmnet.inference.outputs import contact_sheet, warp_difference


@pytest.fixture
def pairs(tmp_path):
    pair = textured_pair()
    for name in ("a", "b", "c"):
        write_image(tmp_path / name / "left.png", pair.left)
        write_image(tmp_path / name / "right.png", pair.right)
        write_pfm(tmp_path / name / "disp.pfm", pair.disparity)
    return tmp_path


def test_rendered_scenes_in_both_layouts_are_the_same_and_pass_the_check(tmp_path, capsys):
    sizes = ["--train=1", "--test=1", "--size", "64", "96", "--max-disparity=32", "--workers=0"]
    for layout in ("sceneflow", "folder"):
        out = tmp_path / layout
        command = ["data", "render", "--out", str(out), "--layout", layout, *sizes]
        assert main(command) == 0
        assert main(command) == 0  # nothing to do
    frames = SceneFlow(tmp_path / "sceneflow", split="test")[0]
    pair = PairFolder(tmp_path / "folder" / "test")[0]
    for field in ("left", "right", "disparity", "valid"):
        np.testing.assert_array_equal(getattr(frames, field), getattr(pair, field))
    assert len(PairFolder(tmp_path / "folder" / "train")) == 1
    capsys.readouterr()
    for root in ("sceneflow", "folder/train", "folder"):
        assert main(["data", "check", str(tmp_path / root), "--pairs", "0"]) == 0
        assert "nothing wrong" in capsys.readouterr().out


def test_one_folder_has_one_layout(tmp_path, capsys):
    render = f"data render --out {tmp_path} --train 1 --test 0 --size 32 48 --workers 0 --layout"
    assert main([*render.split(), "folder"]) == 0
    assert main([*render.split(), "sceneflow"]) == 2
    assert "in the layout folder; choose another folder" in capsys.readouterr().err
    assert not (tmp_path / "FlyingThings3D").exists()


def test_the_kind_of_dataset_has_the_name_it_has_everywhere(pairs, capsys):
    assert main(["data", "check", str(pairs), "--data", "folder", "--pairs", "0"]) == 0
    assert main(["data", "check", str(pairs), "--data", "eth3d", "--pairs", "0"]) == 1
    assert "understood as ETH3D" in capsys.readouterr().out


def test_one_problem_is_one(pairs, capsys):
    (pairs / "a" / "right.png").write_bytes(b"no image")
    assert main(["data", "check", str(pairs), "--pairs", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 problem"


def test_a_sheet_of_pairs_and_of_training_samples(pairs):
    out = pairs / "sheet.png"
    assert main(["data", "show", str(pairs), "--out", str(out), "--count", "2"]) == 0
    two = read_image(out)
    assert main(["data", "show", str(pairs), "--out", str(out)]) == 0
    assert read_image(out).shape[0] > two.shape[0]
    command = ["data", "show", str(pairs), "--out", str(out), "--count", "2", "--size", "48", "96"]
    assert main([*command, "--augment", "robust"]) == 0
    first = read_image(out)
    assert main([*command, "--augment", "robust", "--seed", "1"]) == 0
    assert (read_image(out) != first).any()


def test_pairs_without_truth_are_shown_and_listed(pairs, capsys):
    out = pairs / "sheet.png"
    (pairs / "a" / "disp.pfm").unlink()
    assert main(["data", "show", str(pairs), "--out", str(out)]) == 0
    whole = read_image(out)
    (pairs / "pairs.txt").write_text("a/left.png a/right.png\nb/left.png b/right.png b/disp.pfm\n")
    command = ["data", "show", str(pairs / "pairs.txt"), "--out", str(out)]
    assert main([*command, "--data", "list"]) == 0
    assert read_image(out).shape[0] < whole.shape[0]
    assert main(["data", "check", str(pairs / "pairs.txt"), "--data", "list", "--pairs", "1"]) == 1
    assert main(["data", "check", str(pairs / "a")]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--root", str(pairs), "--out", str(out.with_suffix(""))]) == 2
    assert "no ground truth" in capsys.readouterr().err


def test_a_right_truth_is_dark_a_wrong_one_bright_and_what_is_not_compared_blue():
    pair = textured_pair()
    pair.valid[:48] = False
    shifted = replace(pair, disparity=pair.disparity + 5)
    means = []
    for sample in (pair, shifted):
        sheet = contact_sheet([sample], "title").astype(int)
        column = sheet[78:228, 12 + 3 * 332 + 40 : 12 + 4 * 332 - 20]
        means.append(column[90:140].mean())
        assert (column[5:60] == (40, 60, 120)).all()
    assert 10 < means[0] < 60
    assert means[1] > 2 * means[0]


def test_bad_requests_are_one_line(pairs, capsys):
    out = str(pairs / "sheet.png")
    assert main(["data", "show", str(pairs / "none"), "--out", out]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
    assert main(["data", "show", str(pairs), "--out", out, "--count", "0"]) == 2
    assert "count is 0" in capsys.readouterr().err
    assert main(["data", "show", str(pairs), "--out", out, "--seed=-1"]) == 2
    assert "seed is -1, expected 0 to" in capsys.readouterr().err
    assert not (pairs / "sheet.png").exists()
    nothing = ["data", "render", "--train", "0", "--test", "0", "--out", str(pairs / "scenes")]
    assert main(nothing) == 2
    assert "nothing to render" in capsys.readouterr().err
    assert not (pairs / "scenes").exists()


def test_the_difference_is_that_of_the_warped_right_view():
    pair = textured_pair()
    pair.valid[:20] = False
    difference = warp_difference(pair)
    assert np.isnan(difference[:20]).all()
    match = np.arange(200) - pair.disparity
    assert np.isnan(difference[match < 0]).all()
    expected = np.abs(pair.left.astype(float) - warped(pair)).mean(-1)
    inside = pair.valid & (match >= 0)
    np.testing.assert_allclose(difference[inside], expected[inside], atol=1)


def test_the_sheet_shows_all_four_pictures():
    pair = textured_pair()
    sheet = contact_sheet([pair, pair], "title")
    rows, columns = sheet.shape[:2]
    assert columns > 12 + 4 * 332  # and a colour bar
    middle = sheet[rows // 4 : rows // 4 + 20]
    for column in range(4):
        block = middle[:, 12 + column * 332 : 332 + column * 332]
        assert block.std() > 3
