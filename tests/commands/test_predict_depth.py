"""`predict` with a calibration: depth, clouds, rectification, and what it refuses."""

import json
import re

import cv2
import numpy as np
import pytest
import trimesh
from command_line import ROOT
from made_pairs import write_noise_pair
from test_commands import fails

from ea_psmnet import StereoMatcher, read_calibration
from ea_psmnet.__main__ import main
from ea_psmnet.commands.options import CalibrationOptions
from ea_psmnet.files import read_image, read_pfm

SIZE = (40, 72)
CALIB = "cam0=[70 0 35.5; 0 70 19.5; 0 0 1]\ncam1=[70 0 43.5; 0 70 19.5; 0 0 1]\nbaseline=100\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "noise"
    write_noise_pair(folder, np.random.default_rng(0), SIZE, 8)
    (folder / "calib.txt").write_text(CALIB)
    return folder


def predict(pair, checkpoint, out, *options):
    images = (pair / "left.png", pair / "right.png")
    line = ("predict", *images, "--out", out, "--checkpoint", checkpoint, "--device", "cpu")
    return main([str(part) for part in (*line, "--precision", "exact", *options)])


def test_depth_and_cloud_follow_from_the_disparity(checkpoint, pair, tmp_path, capsys):
    outputs = ("--write", "disparity", "depth", "cloud", "calibration", "image")
    assert predict(pair, checkpoint, tmp_path, *outputs, "--calib", pair / "calib.txt",
                   "--no-clean") == 0  # fmt: skip
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    disparity = read_pfm(tmp_path / "noise_disparity.pfm")
    depth = 70 * 0.1 / (disparity + 8)
    np.testing.assert_allclose(np.load(tmp_path / "noise_depth.npy"), depth, rtol=1e-6)
    np.testing.assert_allclose(read_pfm(tmp_path / "noise_depth.pfm"), depth, rtol=1e-6)
    stored = cv2.imread(str(tmp_path / "noise_depth.png"), cv2.IMREAD_UNCHANGED)
    assert np.abs(stored - 1000 * depth).max() <= 0.51
    cloud = trimesh.load(tmp_path / "noise_cloud.ply")
    np.testing.assert_allclose(cloud.vertices[:, 2], depth.ravel(), rtol=1e-6)
    image = read_image(pair / "left.png")
    assert np.array_equal(cloud.colors[:, :3], image.reshape(-1, 3))
    assert np.array_equal(read_image(tmp_path / "noise_image.png"), image)
    again = read_calibration(tmp_path / "noise_calib.txt")
    assert (again.f, again.baseline, again.doffs) == (70, 0.1, 8)
    assert (again.width, again.height) == (72, 40)


def test_scale_leaves_depth_in_metres(checkpoint, pair, tmp_path):
    for scale in (1, 0.5):
        out = tmp_path / str(scale)
        assert predict(pair, checkpoint, out, "--write", "disparity", "depth", "--scale", scale,
                       "--calib", pair / "calib.txt") == 0  # fmt: skip
        disparity = read_pfm(out / "noise_disparity.pfm")
        depth = np.load(out / "noise_depth.npy")
        np.testing.assert_allclose(depth, 70 * 0.1 / (disparity + 8), rtol=1e-5)


def test_numbers_instead_of_a_file_and_limits_of_the_cloud(checkpoint, pair, tmp_path):
    numbers = ("--focal", 70, "--baseline", 0.1, "--doffs", 8)
    assert predict(pair, checkpoint, tmp_path / "all", "--write", "depth", "cloud", *numbers,
                   "--no-clean") == 0  # fmt: skip
    depth = np.load(tmp_path / "all" / "noise_depth.npy")
    middle = float(np.median(depth))
    assert predict(pair, checkpoint, tmp_path / "far", "--write", "cloud", *numbers, "--no-clean",
                   "--min-depth", middle) == 0  # fmt: skip
    far = trimesh.load(tmp_path / "far" / "noise_cloud.ply").vertices
    assert len(far) == (depth >= np.float32(middle)).sum()
    every = trimesh.load(tmp_path / "all" / "noise_cloud.ply").vertices.reshape(*SIZE, 3)
    # The optical axis meets the centre of the image.
    np.testing.assert_allclose(every[::-1, ::-1, :2] / every[::-1, ::-1, 2:],
                               -every[..., :2] / every[..., 2:], atol=1e-6)  # fmt: skip


def test_an_unrectified_pair_is_rectified_and_says_so(checkpoint, pair, tmp_path, capsys):
    storage = cv2.FileStorage(str(tmp_path / "stereo.yml"), cv2.FILE_STORAGE_WRITE)
    lens = np.array(((60.0, 0, 36), (0, 60, 20), (0, 0, 1)))
    values = {"K1": lens, "D1": np.array((-0.1, 0.02, 0, 0)), "K2": lens, "D2": np.zeros(4),
              "R": np.eye(3), "T": np.array((-100.0, 0, 0))}  # fmt: skip
    for name, value in values.items():
        storage.write(name, value)
    storage.release()
    assert predict(pair, checkpoint, tmp_path / "out", "--write", "image", "depth",
                   "--calib", tmp_path / "stereo.yml") == 0  # fmt: skip
    told = capsys.readouterr().err
    assert "the pair was rectified" in told
    assert re.search("warning: .*the baseline is 100 m: .* millimetres", told)
    matcher = StereoMatcher.load(checkpoint, device="cpu", precision="exact")
    raw = read_calibration(tmp_path / "stereo.yml")
    with pytest.warns(UserWarning, match="baseline is 100 m"):
        expected = matcher(pair / "left.png", pair / "right.png", calibration=raw)
    assert not np.array_equal(expected.image, read_image(pair / "left.png"))
    assert np.array_equal(read_image(tmp_path / "out" / "noise_image.png"), expected.image)
    depth = np.load(tmp_path / "out" / "noise_depth.npy")
    np.testing.assert_allclose(depth, expected.depth, rtol=1e-4)


def test_a_baseline_replaces_that_of_the_file(checkpoint, pair, tmp_path):
    assert predict(pair, checkpoint, tmp_path, "--write", "calibration",
                   "--calib", pair / "calib.txt", "--baseline", 0.2) == 0  # fmt: skip
    assert read_calibration(tmp_path / "noise_calib.txt").baseline == pytest.approx(0.2)
    record = json.loads((tmp_path / "noise_pair.json").read_text())
    assert set(record) == {"left", "right", "settings", "outputs"}


@pytest.mark.parametrize(("camera", "baseline"), [("image_00", 0.54), ("image_02", 0.53)])
def test_grey_cameras_of_kitti_have_a_baseline_of_their_own(tmp_path, camera, baseline):
    """Raw sequences have their images one folder further down, `image_00/data`."""
    rows = (f"P{i}: 70 0 36 {-70 * x} 0 70 20 0 0 0 1 0"
            for i, x in enumerate((0.0, 0.54, -0.06, 0.47)))  # fmt: skip
    calib = tmp_path / "calib.txt"
    calib.write_text("\n".join(rows))
    for image in (tmp_path / camera / "0.png", tmp_path / camera / "data" / "0.png"):
        options = CalibrationOptions(calib=(calib,))
        assert options.load(image, *SIZE).baseline == pytest.approx(baseline)


def test_what_contradicts_or_lacks_is_refused_in_one_line(checkpoint, pair, tmp_path, capsys):
    out = tmp_path / "out"
    images = ("predict", pair / "left.png", pair / "right.png", "--out", out)
    line = (*images, "--checkpoint", checkpoint)
    calib = ("--calib", pair / "calib.txt")
    fails(capsys, "--write cloud needs --calib FILE, or --focal and --baseline", *line,
          "--write", "disparity", "cloud")  # fmt: skip
    fails(capsys, "both --focal and --baseline", *line, "--focal", 70)
    fails(capsys, "--raw goes with --calib", *line, "--raw", True)
    fails(capsys, "--calib and --focal exclude each other", *line, *calib, "--focal", 70)
    fails(capsys, "f is -70: expected more than 0", *line, "--focal", -70, "--baseline", 1)
    fails(capsys, "has no complete K, R and T", *line, *calib, "--raw", True)
    fails(capsys, "nowhere.txt: no such file", *line, "--calib", tmp_path / "nowhere.txt")
    fails(capsys, "--min-depth 3 is not below --max-depth 2", *line, "--min-depth", 3,
          "--max-depth", 2)  # fmt: skip
    fails(capsys, "no point is left", *line, *calib, "--write", "cloud",
          "--no-clean", "--min-depth", 1000)  # fmt: skip
    fails(capsys, "--calib names no file", *line, "--calib")
    assert not list(out.glob("*"))
    copy = tmp_path / "noise_calib.txt"
    copy.write_text(CALIB)
    fails(capsys, "noise_calib.txt: would overwrite an input", *images[:-1], tmp_path, "--write",
          "calibration", "--calib", copy, "--checkpoint", checkpoint, "--force")  # fmt: skip
    assert copy.read_text() == CALIB


def test_an_empty_cloud_leaves_the_other_outputs(checkpoint, pair, tmp_path, capsys):
    assert predict(pair, checkpoint, tmp_path, "--write", "disparity", "cloud", "--no-clean",
                   "--calib", pair / "calib.txt", "--min-depth", 1000) == 0  # fmt: skip
    assert "no cloud is written" in capsys.readouterr().err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"noise_disparity.pfm", "noise_disparity.png", "noise_pair.json"}
    assert predict(pair, checkpoint, tmp_path, "--write", "disparity", "cloud", "--no-clean",
                   "--calib", pair / "calib.txt", "--min-depth", 1000,
                   "--existing", "skip", "--json") == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["status"] == "skipped"


@pytest.mark.filterwarnings("ignore:the images are 72 px wide")
def test_the_documented_example_runs(pair, tmp_path, monkeypatch):
    for path in pair.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs" / "depth.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    (glb,) = trimesh.load(tmp_path / "scene.glb").geometry.values()
    assert len(glb.vertices) == len(names["cloud"]) == names["cloud"].mask.sum() > 1000
    assert names["result"].depth[20, 40] == pytest.approx(70 * 0.1 / 16, rel=0.05)
