"""The commands as a user runs them: files in, files and one line out."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_line import ROOT, run_command
from made_pairs import write_noise_pair

from ea_psmnet import StereoMatcher
from ea_psmnet.__main__ import main
from ea_psmnet.console import show_warning
from ea_psmnet.files import read_image, read_pfm, write_image

SIZE = (40, 72)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "noise"
    return write_noise_pair(folder, np.random.default_rng(0), SIZE, 8)


def fails(capsys, message, *arguments):
    """The command ends with 2 and exactly one line, which holds the message."""
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert error.startswith("error: ")
    assert message in error


def ended(*arguments):
    """Exit code of a command, whether it returns it or leaves by it."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as left:
        return left.code


LOADED = """
import sys
from ea_psmnet.__main__ import main
for command in ("", "train", "predict", "evaluate", "compare", "data render"):
    try:
        main([*command.split(), "--help"])
    except SystemExit as left:
        assert left.code == 0, command
print("loaded:", *sys.modules)
"""


def test_help_loads_nothing_slow():
    """Instant help is a matter of what is imported for it; times would depend on the machine."""
    line = [sys.executable, "-c", LOADED]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    helps, _, loaded = told.partition("loaded:")
    assert helps.count("usage: python -m ea_psmnet") == 6
    assert not {"torch", "cv2", "matplotlib", "numpy"} & set(loaded.split())


@pytest.mark.parametrize("folder", ["plain", "set#1", os.fsdecode(b"caf\xe9")])
def test_predict_never_overwrites_its_input(checkpoint, pair, tmp_path, capsys, folder):
    (tmp_path / folder).mkdir()
    images = [tmp_path / folder / "a_disparity.png", tmp_path / folder / "right.png"]
    for path, view in zip(images, ("left", "right"), strict=True):
        path.write_bytes((pair / f"{view}.png").read_bytes())
    fails(capsys, "would overwrite an input", "predict", *images, "--out", tmp_path / folder,
          "--checkpoint", checkpoint, "--name", "a", "--force")  # fmt: skip
    assert images[0].read_bytes() == (pair / "left.png").read_bytes()
    assert len(list(images[0].parent.iterdir())) == 2


def test_results_may_lie_beside_images_that_are_named_like_other_outputs(
    checkpoint, pair, tmp_path, capsys
):
    """The right image is `hall_right.png`, as what `--write right` makes would be."""
    images = [tmp_path / f"hall_{view}.png" for view in ("left", "right")]
    for path, view in zip(images, ("left", "right"), strict=True):
        path.write_bytes((pair / f"{view}.png").read_bytes())
    line = ("predict", *images, "--out", tmp_path, "--checkpoint", checkpoint)
    assert main([str(part) for part in line]) == 0
    capsys.readouterr()
    fails(capsys, "hall_right.png: would overwrite an input", *line, "--write", "right")
    assert images[1].read_bytes() == (pair / "right.png").read_bytes()


def test_a_workers_error_is_one_line(pair, tmp_path, capfd):
    broken = tmp_path / "pairs" / "b"
    for folder in (tmp_path / "pairs" / "a", broken):
        folder.mkdir(parents=True)
        for name in ("left.png", "right.png", "disp.npy"):
            (folder / name).write_bytes((pair / name).read_bytes())
    (broken / "right.png").write_bytes(b"no image")
    code = ended(
        *("train", "--data", "folder", "--root", tmp_path / "pairs", "--out", tmp_path / "run"),
        *("--preset", "ea-light", "--no-imagenet", "--max-disparity", 32, "--crop", 32, 64),
        *("--batch", 2, "--workers", 1, "--steps", 4, "--device", "cpu", "--no-memory-check"),
        *("--micro-batch", 2),
    )
    assert code == 2
    told = capfd.readouterr().err
    lines = [line for line in told.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert "right.png: damaged, or not an image (8 bytes); fetch it again" in lines[0]
    assert "Traceback" not in told


def test_predict_writes_what_the_matcher_says(checkpoint, pair, tmp_path, capsys):
    out = tmp_path / "out"
    code = ended(
        *("predict", pair / "left.png", pair / "right.png", "--out", out),
        *("--checkpoint", checkpoint, "--precision", "exact", "--device", "cpu"),
    )
    assert code == 0
    written = sorted(path.name for path in out.iterdir())
    assert written == [f"noise_{end}" for end in ("disparity.pfm", "disparity.png", "pair.json",
                                                  "preview.png")]  # fmt: skip
    assert sorted(capsys.readouterr().out.split()) == sorted(str(path) for path in out.iterdir())
    matcher = StereoMatcher.load(checkpoint, device="cpu", precision="exact")
    expected = matcher(*(read_image(pair / f"{v}.png") for v in ("left", "right"))).disparity
    np.testing.assert_allclose(read_pfm(out / "noise_disparity.pfm"), expected, rtol=0, atol=1e-4)
    stored = cv2.imread(str(out / "noise_disparity.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 256, expected, rtol=0, atol=1 / 128)


def test_pairs_in_one_folder_keep_their_results(checkpoint, pair, tmp_path, capsys):
    out, twin = tmp_path / "out", tmp_path / "twin"
    shutil.copytree(pair, twin)
    write_image(twin / "left.png", read_image(pair / "left.png")[::-1])

    def predict(folder, *options):
        images = (folder / "left.png", folder / "right.png")
        line = ("predict", *images, "--out", out, "--checkpoint", checkpoint, *options)
        return main([str(part) for part in line])

    assert predict(pair) == predict(twin) == predict(pair) == 0
    first, second = (read_pfm(out / f"{name}_disparity.pfm") for name in ("noise", "twin"))
    assert not np.array_equal(first, second)
    capsys.readouterr()
    assert predict(twin, "--name", "noise") == 2
    assert "noise_disparity.pfm: exists and is not of this pair" in capsys.readouterr().err
    assert predict(twin, "--name", "noise", "--force") == 0
    assert np.array_equal(read_pfm(out / "noise_disparity.pfm"), second)


def test_a_narrow_pair_is_searched_whole_and_says_so(
    checkpoint, pair, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(warnings, "showwarning", show_warning)  # as the program does
    code = ended(
        *("predict", pair / "left.png", pair / "right.png", "--out", tmp_path, "--scale", 1.5),
        *("--checkpoint", checkpoint, "--max-disparity", 192),
    )
    assert code == 0
    assert capsys.readouterr().err.strip() == (
        "warning: the images are 108 px wide: disparities up to 112 are searched, not up to 192"
    )
    assert read_pfm(tmp_path / "noise_disparity.pfm").shape == SIZE


def variants(image):
    """One picture as people have it: grey, with alpha, 16 bits deep, as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    yield "grey.png", cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    yield "alpha.png", cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
    yield "deep.png", bgr.astype(np.uint16) * 257
    yield "lossy.jpg", bgr


def test_predict_takes_images_of_every_kind(checkpoint, pair, tmp_path):
    for name, image in variants(read_image(pair / "left.png")):
        cv2.imwrite(str(tmp_path / name), image)
        arguments = ["predict", tmp_path / name, pair / "right.png", "--out", tmp_path / "out"]
        assert main([*map(str, arguments), "--checkpoint", str(checkpoint)]) == 0
        assert read_pfm(tmp_path / "out" / f"{tmp_path.name}_disparity.pfm").shape == SIZE
        shutil.rmtree(tmp_path / "out")


def test_predict_refuses_in_one_line_and_writes_nothing(checkpoint, pair, tmp_path, capsys):
    left, right, out = pair / "left.png", pair / "right.png", tmp_path / "out"
    end = ("--out", out, "--checkpoint", checkpoint)
    other = tmp_path / "other.png"
    write_image(other, read_image(left)[:, :60])
    wrong = tmp_path / "wrong.tar"
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, wrong)

    fails(capsys, "left.png: is a file: --out takes a folder", "predict", left, right,
          "--out", left, "--checkpoint", checkpoint)  # fmt: skip
    fails(capsys, "GiB even in the smallest tiles, and 0.00 are left beside what the program holds",
          "predict", left, right, *end, "--memory", "1MiB")  # fmt: skip
    fails(capsys, "nowhere.png: no such file", "predict", tmp_path / "nowhere.png", right, *end)
    fails(capsys, "left 72 x 40, right 60 x 40", "predict", left, other, *end)
    fails(capsys, "'a/b' is not a valid --name", "predict", left, right, *end, "--name", "a/b")
    fails(capsys, "scale is 0: expected above 0", "predict", left, right, *end, "--scale", 0)
    fails(capsys, "unknown device 'gpu'", "predict", left, right, *end, "--device", "gpu")
    fails(capsys, "0 threads: expected 1", "predict", left, right, *end, "--threads", 0)
    fails(capsys, "multiple of 16", "predict", left, right, *end, "--max-disparity", 30)
    fails(capsys, "no such checkpoint", *("predict", left, right, "--out", out),
          *("--checkpoint", tmp_path / "none.safetensors"))  # fmt: skip
    fails(capsys, "'fc.weight' is not a parameter", "predict", left, right, "--out", out,
          "--checkpoint", wrong)  # fmt: skip
    assert not out.exists()


def test_a_damaged_image_is_one_line_without_the_decoders_own(checkpoint, pair, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes((pair / "right.png").read_bytes()[:40])
    result = run_command("predict", pair / "left.png", torn, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        == f"error: {torn}: damaged, or not an image (40 bytes); fetch it again"
    )


def test_a_folder_that_cannot_be_written_is_named(checkpoint, pair, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    end = ("--out", out, "--checkpoint", checkpoint)
    fails(capsys, f"{out}", "predict", pair / "left.png", pair / "right.png", *end)


def test_unknown_options_end_with_two():
    assert ended("predict", "--colour") == 2
    assert ended("fly") == 2


def test_impossible_training_settings_end_with_two(tmp_path, capsys):
    assert ended("train", "--out", tmp_path / "run", "--data", "synthetic", "--crop", 30, 64) == 2
    assert "multiples of 16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_render_then_train_then_predict(tmp_path, capsys):
    """The whole road in small: everything a first user does, on scenes made here."""
    scenes, run_folder, out = (str(tmp_path / n) for n in ("scenes", "run", "out"))
    assert main(f"data render --out {scenes} --train 2 --test 1 --size 64 96 --max-disparity 32 "
                "--workers 0".split()) == 0  # fmt: skip
    assert main(f"train --data sceneflow --root {scenes} --out {run_folder} --preset "
                "ea-psmnet-small --max-disparity 32 --crop 48 80 --batch 2 --steps 2 --workers 0 "
                "--device cpu".split()) == 0  # fmt: skip
    weights = capsys.readouterr().out.split()[-1]
    frame = Path(scenes) / "FlyingThings3D/frames_cleanpass/TEST/A/0000"
    assert main(["predict", *(f"{frame}/{view}/0006.png" for view in ("left", "right")),
                 "--checkpoint", weights, "--out", out]) == 0  # fmt: skip
    assert main(["evaluate", "--root", scenes, "--checkpoint", weights]) == 0
    assert "| pooled " in capsys.readouterr().out
