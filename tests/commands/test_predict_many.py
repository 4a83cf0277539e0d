"""`predict` with many pairs and videos, as users and scripts run it."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from command_line import run_command
from made_pairs import write_noise_pair

from ea_psmnet.__main__ import main
from ea_psmnet.files import read_image, read_pfm, write_image
from ea_psmnet.inference.outputs import preview
from ea_psmnet.models.weights import load_model, save_model

SIZE = (40, 72)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    for number, name in enumerate("abc"):
        write_noise_pair(root / name, np.random.default_rng(number), SIZE, 8)
    (root / "b" / "right.png").write_bytes(b"no image")
    return root


@pytest.fixture
def predict(checkpoint):
    def run(*arguments):
        return main(["predict", *map(str, arguments), "--checkpoint", str(checkpoint)])

    return run


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_failing_pair_is_listed_at_the_end_and_the_others_are_there(
    pairs, predict, tmp_path, capfd
):
    assert predict(pairs, "--out", tmp_path) == 1
    told = capfd.readouterr()
    *_, last = told.err.strip().splitlines()
    assert last.startswith(f"failed: b: {pairs}/b/right.png: damaged")
    assert "\r" not in told.err
    assert {path.name.split("_")[0] for path in tmp_path.iterdir()} == {"a", "c"}
    assert len(told.out.split()) == 8


def test_a_failing_pair_of_a_list_is_told_by_its_image(predict, tmp_path, capsys):
    for folder, size in (("good", SIZE), ("bad", (SIZE[0], SIZE[1] + 16))):
        pair = write_noise_pair(tmp_path / folder, np.random.default_rng(0), size, 8)
        for view in ("left", "right"):
            (pair / f"{view}.png").rename(pair / f"im_{view}.png")
    shutil.copy(tmp_path / "good" / "im_right.png", tmp_path / "bad" / "im_right.png")
    listing = tmp_path / "bad" / "list.txt"
    listing.write_text("im_left.png im_right.png\n../good/im_left.png ../good/im_right.png\n")
    assert predict(listing, "--out", tmp_path / "out") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path}/bad/im_left.png: the images differ in size" in last


def test_json_tells_scripts_everything(pairs, predict, tmp_path, capsys):
    assert predict(pairs, "--out", tmp_path, "--json") == 1
    told = {line["name"]: line for line in lines(capsys)}
    assert {name: line["status"] for name, line in told.items()} == {
        "a": "written",
        "b": "failed",
        "c": "written",
    }
    disparity = read_pfm(tmp_path / "a_disparity.pfm")
    assert told["a"]["disparity"] == [float(disparity.min()), float(disparity.max())]
    assert told["a"]["paths"][0] == str(tmp_path / "a_disparity.pfm")
    assert told["a"]["seconds"] > 0
    assert "right.png" in told["b"]["error"]


def test_an_interrupted_run_goes_on(pairs, predict, tmp_path, capsys):
    good = tmp_path / "good"
    for name in "ac":
        shutil.copytree(pairs / name, good / name)
    out = tmp_path / "out"
    assert predict(good, "--out", out) == 0
    first = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "c_preview.png").unlink()
    capsys.readouterr()
    assert predict(good, "--out", out, "--existing", "skip", "--json") == 0
    assert [line["status"] for line in lines(capsys)] == ["skipped", "written"]
    assert all(path.stat().st_mtime_ns == first[path] for path in out.glob("a_*"))
    assert predict(good, "--out", out, "--existing", "skip", "--json", "--scale", 0.5) == 0
    assert [line["status"] for line in lines(capsys)] == ["written", "written"]
    alone = ("--existing", "skip", "--json", "--scale", 0.5, "--picture", "disparity")
    assert predict(good, "--out", out, *alone) == 0
    assert [line["status"] for line in lines(capsys)] == ["written", "written"]
    assert predict(good, "--out", out, "--existing", "refuse") == 1
    assert "exists: give another --out, or --existing skip" in capsys.readouterr().err


def test_results_of_other_weights_in_the_same_run_folder_are_not_kept(
    pairs, checkpoint, tmp_path, capsys
):
    run = tmp_path / "run" / "model.safetensors"
    run.parent.mkdir()
    shutil.copy(checkpoint, run)
    line = ["predict", *(str(pairs / "a" / f"{side}.png") for side in ("left", "right")), "--json",
            "--out", str(tmp_path / "out"), "--checkpoint", str(run.parent)]  # fmt: skip
    statuses = []
    for _ in range(2):
        assert main([*line, "--existing", "skip"]) == 0
        statuses += [told["status"] for told in lines(capsys)]
    network = load_model(run)
    with torch.no_grad():
        next(network.aggregation.parameters()).mul_(1.1)
    save_model(run, network)
    assert main([*line, "--existing", "skip"]) == 0
    statuses += [told["status"] for told in lines(capsys)]
    assert statuses == ["written", "skipped", "written"]


@pytest.mark.slow
def test_quiet_says_nothing_but_errors(pairs, predict, checkpoint, tmp_path, capfd):
    """In a process of its own, too, where nothing else takes warnings."""
    out = ("--out", tmp_path, "--quiet")
    assert predict(pairs / "a" / "left.png", pairs / "a" / "right.png", *out) == 0
    assert capfd.readouterr() == ("", "")
    result = run_command("predict", pairs, *out, "--checkpoint", checkpoint)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.strip().splitlines()) == 1


def test_both_views_in_one_image_are_predicted_as_two(pairs, predict, tmp_path):
    views = [read_image(pairs / "a" / f"{side}.png") for side in ("left", "right")]
    write_image(tmp_path / "both.png", np.vstack(views))
    assert predict(tmp_path / "both.png", "--layout", "top-bottom", "--out", tmp_path / "o") == 0
    assert predict(pairs / "a/left.png", pairs / "a/right.png", "--out", tmp_path / "o") == 0
    both, two = (read_pfm(tmp_path / "o" / f"{name}_disparity.pfm") for name in ("both", "a"))
    np.testing.assert_array_equal(both, two)


@pytest.mark.parametrize(
    ("picture", "width"), [("beside", 24 + 2 * 984), ("disparity", 24 + 984), ("none", None)]
)
def test_the_picture_is_as_asked(picture, width, pairs, predict, tmp_path):
    images = pairs / "a/left.png", pairs / "a/right.png"
    assert predict(*images, "--out", tmp_path, "--picture", picture) == 0
    path = tmp_path / "a_preview.png"
    assert path.exists() == (width is not None)
    if width is not None:
        assert read_image(path).shape[1] == width


def test_colours_can_be_fixed(pairs, predict, tmp_path, capsys):
    images = pairs / "a/left.png", pairs / "a/right.png"
    line = (*images, "--out", tmp_path, "--write", "disparity", "preview", "--colours")
    assert predict(*line, 0, 500) == 0
    disparity = read_pfm(tmp_path / "a_disparity.pfm")
    left = read_image(images[0])
    expected = preview(left, disparity, name="a", colours=(0, 500))
    np.testing.assert_array_equal(read_image(tmp_path / "a_preview.png"), expected)
    assert (expected != preview(left, disparity, name="a")).any()
    assert predict(*line, 9, 3) == 2
    assert predict(*line, 0, "inf") == 2
    told = "--colours takes two finite disparities, the smaller first"
    assert capsys.readouterr().err.count(told) == 2


def test_images_without_a_partner_and_wrong_options_are_told(pairs, predict, tmp_path, capsys):
    for side, names in (("l", "12"), ("r", "13")):
        for name in names:
            write_image(tmp_path / side / f"{name}.png", read_image(pairs / "a" / "left.png"))
    assert predict(tmp_path / "l", tmp_path / "r", "--out", tmp_path / "o", "--quiet") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) >= 2
    assert sum("no image of the other view has this name" in line for line in errors) == 2
    assert (tmp_path / "o" / "1_disparity.pfm").exists()
    assert predict(pairs, "--out", tmp_path / "o", "--name", "x") == 2
    assert "--name is for one pair, and these are 3" in capsys.readouterr().err
    assert predict("--out", tmp_path / "o") == 2
    assert predict(pairs, "--out", tmp_path / "o", "--smooth", 1) == 2


def test_a_video_leaves_results_that_it_did_not_write(pairs, predict, tmp_path, capsys):
    from inference.test_video import write_video

    left, right = (read_image(pairs / "a" / f"{side}.png") for side in ("left", "right"))
    video, other = tmp_path / "walk.avi", tmp_path / "other" / "walk.avi"
    other.parent.mkdir()
    write_video(video, [np.hstack([left, right])] * 2)
    write_video(other, [np.hstack([left, right])[::-1]] * 2)
    common = ("--layout", "side-by-side", "--out", tmp_path / "o", "--write")
    assert predict(video, *common, "disparity") == 0
    maps = sorted((tmp_path / "o").glob("walk/*.pfm"))
    for extra in ((), ("--existing", "skip")):
        assert predict(video, *common, "preview", *extra) == 0
        assert len(maps) == 2
        assert all(path.with_name(f"{path.name[:6]}_pair.json").exists() for path in maps)
    made = tmp_path / "o" / "walk_preview.mp4"
    before = made.read_bytes()
    capsys.readouterr()
    for source, extra, told in (
        (video, ("--existing", "refuse"), "walk_preview.mp4: exists"),
        (other, (), "is not of this video"),
    ):
        assert predict(source, *common, "preview", *extra) == 2
        assert told in capsys.readouterr().err
        assert made.read_bytes() == before
    assert predict(other, *common, "preview", "--force") == 0
    assert made.read_bytes() != before
    mine = ("--name", "walk", "--force")
    assert predict(made, *common, "preview", *mine) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert predict(video, *common[:-2], folder, "--write", "preview") == 2
    assert "OpenCV takes no video whose path is not UTF-8" in capsys.readouterr().err
    assert not folder.exists()


def test_a_video_leaves_no_frames_of_a_run_that_was_stopped(
    pairs, predict, tmp_path, monkeypatch, capsys
):
    from inference.test_video import write_video

    left, right = (read_image(pairs / "a" / f"{side}.png") for side in ("left", "right"))
    video = write_video(tmp_path / "walk.avi", [np.hstack([left, right])] * 2)
    line = (video, "--layout", "side-by-side", "--out", tmp_path / "o", "--write", "preview")
    with monkeypatch.context() as patched:
        patched.setattr("ea_psmnet.inference.video.write_disparity_video", _stopped)
        assert predict(*line) == 130
    assert len(list((tmp_path / "o" / "walk").iterdir())) == 6
    assert predict(*line, "--existing", "skip", "--json") == 0
    statuses = [told["status"] for told in lines(capsys)]
    assert statuses == ["skipped", "skipped", "written"]
    assert predict(*line, "--existing", "skip", "--json") == 0  # the video is there
    assert [told["status"] for told in lines(capsys)] == ["skipped"]
    assert predict(*line, "--existing", "skip", "--json", "--smooth", 0.5) == 0
    assert [told["status"] for told in lines(capsys)] == ["written"] * 3
    for statuses in (["skipped", "written", "written"], ["skipped"] * 3):  # the video, two frames
        assert predict(*line, "image", "--existing", "skip", "--json", "--smooth", 0.5) == 0
        assert [told["status"] for told in lines(capsys)] == statuses
    assert len(list((tmp_path / "o" / "walk").iterdir())) == 4
    shutil.rmtree(tmp_path / "o" / "walk")
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "walk_preview.mp4",
        "walk_preview.json",
    }


def _stopped(*arguments, **options):
    raise KeyboardInterrupt


def test_outputs_of_other_settings_are_written_again(pairs, predict, tmp_path, capsys):
    """Though the record of the pair is of the same settings, because of other outputs."""
    line = (pairs / "a" / "left.png", pairs / "a" / "right.png", "--out", tmp_path, "--json")
    scaled = ("--scale", 0.5)
    for write, extra, status in (
        (("confidence",), scaled, "written"),
        (("disparity",), (), "written"),
        (("disparity", "confidence"), ("--existing", "skip"), "written"),
        (("confidence",), ("--existing", "skip"), "skipped"),
        (("preview",), (), "written"),
        (("disparity", "confidence"), ("--existing", "skip"), "skipped"),
    ):
        assert predict(*line, "--write", *write, *extra) == 0
        assert [told["status"] for told in lines(capsys)] == [status]


def test_a_video_of_unrectified_frames_shows_rectified_ones(pairs, predict, tmp_path):
    from inference.test_video import write_video

    left, right = (read_image(pairs / "a" / f"{side}.png") for side in ("left", "right"))
    video = write_video(tmp_path / "walk.avi", [np.hstack([left, right])] * 2)
    lens = "[60.0, 0.0, 36.0, 0.0, 60.0, 20.0, 0.0, 0.0, 1.0]"
    (tmp_path / "stereo.yml").write_text(
        "%YAML:1.0\n---\n"
        + "".join(
            f"{name}: !!opencv-matrix {{rows: {rows}, cols: {columns}, dt: d, data: {data}}}\n"
            for name, rows, columns, data in (
                *((f"K{i}", 3, 3, lens) for i in "12"),
                *((f"D{i}", 1, 4, "[-0.5, 0.1, 0.0, 0.0]") for i in "12"),
                ("R", 3, 3, "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]"),
                ("T", 3, 1, "[-0.1, 0.0, 0.0]"),
            )
        )
    )
    line = (video, "--layout", "side-by-side", "--out", tmp_path / "o")
    calib = ("--calib", tmp_path / "stereo.yml")
    assert predict(*line, *calib, "--write", "preview", "image") == 0
    rectified = read_image(tmp_path / "o" / "walk" / "000000_image.png")
    assert np.abs(rectified.astype(int) - left).mean() > 20
    frame = cv2.VideoCapture(str(tmp_path / "o" / "walk_preview.mp4")).read()[1][..., ::-1]
    shown = frame[92 : 92 + 356, 16 : 16 + 640]
    expected = cv2.resize(rectified, (640, 356), interpolation=cv2.INTER_NEAREST)
    errors = [np.abs(shown.astype(int) - cv2.resize(image, (640, 356))).mean()
              for image in (rectified, left)]  # fmt: skip
    assert expected.shape == shown.shape
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("write", [("preview",), ("disparity", "preview")])
def test_a_video_becomes_a_video(write, pairs, predict, tmp_path, capsys):
    from inference.test_video import write_video

    left, right = (read_image(pairs / "a" / f"{side}.png") for side in ("left", "right"))
    video = write_video(tmp_path / "walk.avi", [np.hstack([left, right])] * 3)
    line = (video, "--layout", "side-by-side", "--out", tmp_path / "o", "--write", *write)
    assert predict(*line, "--smooth", 0.5) == 0
    told = json.loads((tmp_path / "o" / "walk_preview.json").read_text())
    assert told["frames"] == 3
    assert told["flicker"]["written"]["median"] <= told["flicker"]["predicted"]["median"]
    assert (tmp_path / "o" / "walk_preview.mp4").stat().st_size > 1000
    frames = sorted(path.name for path in (tmp_path / "o").glob("walk/*.pfm"))
    assert frames == ([f"{n:06d}_disparity.pfm" for n in range(3)] if "disparity" in write else [])
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(
        str(path) for path in (tmp_path / "o").rglob("*") if path.is_file()
    )
