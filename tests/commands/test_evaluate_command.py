"""`evaluate` from the command line, on pairs made here and on real ones where they are."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, command
from made_pairs import write_noise_pair

from ea_psmnet import StereoMatcher
from ea_psmnet.__main__ import main
from ea_psmnet.files import read_disparity, read_image, write_pfm
from ea_psmnet.metrics import DisparityErrors

SIZE = (40, 96)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two pairs of shifted noise, 4 and 8 px."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name, shift in (("four", 4), ("eight", 8)):
        write_noise_pair(folder / name, rng, SIZE, shift)
    return folder


@pytest.fixture
def theirs(tmp_path, pairs):
    """Another system's predictions, 1.5 px off."""
    for name in ("four", "eight"):
        truth, _ = read_disparity(pairs / name / "disp.npy")
        write_pfm(tmp_path / "theirs" / f"{name}.pfm", truth + 1.5)
    return tmp_path / "theirs"


def run(*arguments):
    return main(["evaluate", *map(str, arguments)])


def fails(capsys, message, *arguments):
    """The command ends with 2 and exactly one line, which holds the message."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert message in error[-1]


def methods(path):
    return {each["label"]: each for each in json.loads(path.read_text())["methods"]}


def test_a_network_a_baseline_and_saved_predictions_side_by_side(
    checkpoint, pairs, theirs, tmp_path, capsys
):
    out = tmp_path / "report"
    assert run("--root", pairs, "--checkpoint", checkpoint, "--method", "sgbm", "--limit", 32,
               "--predictions", theirs, "--out", out, "--sheets", "--error-maps", "--worst",
               "--precision", "exact", "--device", "cpu") == 0  # fmt: skip
    found = methods(out / "report.json")
    assert list(found) == ["tiny", "SGBM (filled, padded)", "theirs"]
    assert found["theirs"]["total"]["EPE"] == pytest.approx(1.5)
    assert found["SGBM (filled, padded)"]["total"]["EPE"] < 0.2
    matcher = StereoMatcher.load(checkpoint, device="cpu", precision="exact")
    expected = DisparityErrors()
    for name, shift in (("eight", 8), ("four", 4)):
        views = (read_image(pairs / name / f"{view}.png") for view in ("left", "right"))
        truth = np.full(SIZE, shift, np.float32)
        expected += DisparityErrors.measure(matcher(*views).disparity, truth, truth > 0)
    assert found["tiny"]["total"]["EPE"] == pytest.approx(expected.epe, rel=1e-4)
    table = capsys.readouterr().out
    assert f"{expected.epe:.3f}" in table
    assert table.split("\n\n")[1] in (out / "report.md").read_text()
    for folder in ("sheets", "error_maps"):
        assert sorted(str(p.relative_to(out / folder)) for p in (out / folder).glob("*/*")) == [
            *("SGBM_filled_padded/eight.png", "SGBM_filled_padded/four.png", "theirs/eight.png"),
            *("theirs/four.png", "tiny/eight.png", "tiny/four.png"),
        ]
    assert {p.name for p in (out / "worst").iterdir()} == {
        *("SGBM_filled_padded.png", "theirs.png", "tiny.png"),
    }
    page = (out / "report.md").read_text()
    assert "![theirs: the 2 pairs with the highest EPE](worst/theirs.png)" in page


def test_holes_are_filled_or_left_and_told(pairs, tmp_path):
    common = ("--root", pairs, "--method", "sgbm", "bm", "--limit", 32)
    assert run(*common, "--no-fill", "--no-pad", "--out", tmp_path / "left") == 0
    assert run(*common, "--no-fill", "--out", tmp_path / "padded") == 0
    left, padded = (methods(tmp_path / name / "report.json") for name in ("left", "padded"))
    assert set(left) == {"SGBM (holes left)", "BM (holes left)"}
    assert left["SGBM (holes left)"]["total"]["density"] < 100 * (96 - 32) / 96 + 1
    assert padded["SGBM (holes left, padded)"]["total"]["density"] > 85


def test_two_reports_are_compared(pairs, theirs, tmp_path, capsys):
    common = ("--root", pairs, "--limit", 32)
    assert run(*common, "--method", "sgbm", "--out", tmp_path / "sgbm") == 0
    before = tmp_path / "sgbm" / "report.json"
    capsys.readouterr()
    assert run(*common, "--predictions", theirs, "--against", before, "--out", tmp_path / "t") == 0
    printed = capsys.readouterr().out
    assert "**theirs against SGBM (filled, padded), 2 images**" in printed
    (comparison,) = json.loads((tmp_path / "t" / "report.json").read_text())["comparisons"]
    epe = comparison["differences"][0]
    assert epe["after"] == pytest.approx(1.5)
    assert epe["low"] <= epe["after"] - epe["before"] <= epe["high"]
    assert "**theirs against" in (tmp_path / "t" / "report.md").read_text()
    # Two saved reports, no dataset at hand.
    assert run("--report", tmp_path / "t" / "report.json", "--against", before) == 0
    assert capsys.readouterr().out.strip() == printed.strip()


def test_a_refused_comparison_costs_nothing_else(pairs, theirs, tmp_path, capsys):
    common = ("--root", pairs, "--predictions", theirs)
    assert run(*common, "--limit", 8, "--out", tmp_path / "eight") == 0
    fails(capsys, "figures over different pixels do not compare", *common, "--limit", 32,
          "--against", tmp_path / "eight" / "report.json", "--out", tmp_path / "out")  # fmt: skip
    assert methods(tmp_path / "out" / "report.json")["theirs"]["total"]["EPE"] == 1.5


def test_a_report_of_other_pairs_is_refused_at_once(pairs, theirs, tmp_path, capsys):
    common = ("--root", pairs, "--predictions", theirs)
    assert run(*common, "--out", tmp_path / "before") == 0
    path = tmp_path / "before" / "report.json"
    text = path.read_text().replace('"name": "four"', '"name": "4"')
    path.write_text(text.replace('"name": "eight"', '"name": "8"'))
    fails(capsys, "theirs and theirs share no image", *common, "--against", path,
          "--out", tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def until_killed(arguments, measured):
    """Start the command and kill it, as nothing can be caught, once so many batches are kept."""
    unfinished = Path(arguments[arguments.index("--out") + 1]) / "unfinished"
    with subprocess.Popen(
        command("evaluate", *arguments), cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len(list(unfinished.glob("0*.gz"))) < measured:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return unfinished


def without_times(path):
    """A report without what the clock says."""
    record = json.loads(path.read_text())
    for method in record["methods"]:
        for image in method["images"]:
            del image["seconds"]
    return record


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_as_if_it_had_not_been(
    checkpoint, pairs, tmp_path, capsys
):
    root = tmp_path / "pairs"
    for index in range(16):
        shutil.copytree(pairs / ("four", "eight")[index % 2], root / f"{index:02}")
    common = ("--root", root, "--checkpoint", checkpoint, "--method", "sgbm", "--limit", 32,
              "--error-maps", "--worst", "--precision", "exact", "--device", "cpu")  # fmt: skip
    killed = (*common, "--out", tmp_path / "killed")
    unfinished = until_killed(killed, measured=2)
    fails(capsys, "has limit 32, not 16", *killed, "--limit", 16)
    fails(capsys, "attention True", *killed, "--no-attention")
    (unfinished / "thesis.txt").touch()  # a user's
    first = tmp_path / "killed" / "error_maps" / "tiny" / "00.png"
    first.unlink()
    assert run(*killed) == 0
    assert not first.exists()  # the first pair was not predicted again
    assert [path.name for path in unfinished.iterdir()] == ["thesis.txt"]
    assert run(*common, "--out", tmp_path / "whole") == 0
    assert not (tmp_path / "whole" / "unfinished").exists()
    reports = [without_times(tmp_path / name / "report.json") for name in ("killed", "whole")]
    assert reports[0] == reports[1]
    assert len(reports[0]["methods"][1]["images"]) == 16
    worst = [tmp_path / name / "worst" / "tiny.png" for name in ("killed", "whole")]
    assert worst[0].read_bytes() == worst[1].read_bytes()


def test_pairs_predicted_together_have_the_figures_of_single_ones(checkpoint, pairs, tmp_path):
    common = ("--root", pairs, "--checkpoint", checkpoint, "--limit", 32, "--precision", "exact",
              "--device", "cpu")  # fmt: skip
    assert run(*common, "--out", tmp_path / "one") == 0
    assert run(*common, "--batch", 2, "--out", tmp_path / "two") == 0
    one, two = (methods(tmp_path / name / "report.json")["tiny"] for name in ("one", "two"))
    assert two["total"] == pytest.approx(one["total"], rel=1e-4)
    assert [image["name"] for image in two["images"]] == ["eight", "four"]


def test_two_scales_have_figures_and_a_name_of_their_own(checkpoint, pairs, tmp_path):
    common = ("--root", pairs, "--checkpoint", checkpoint, "--limit", 32, "--device", "cpu",
              "--out", tmp_path)  # fmt: skip
    assert run(*common) == 0
    once = methods(tmp_path / "report.json")["tiny"]["total"]
    assert run(*common, "--two-scales") == 0
    ((label, found),) = methods(tmp_path / "report.json").items()
    assert label == "tiny, two scales"
    assert found["total"]["EPE"] != once["EPE"]


def test_checkpoints_of_one_name_are_told_apart(checkpoint, pairs, tmp_path):
    copies = [tmp_path / run / "model.safetensors" for run in ("first", "second")]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_bytes(checkpoint.read_bytes())
    assert run("--root", pairs, "--checkpoints", *copies, "--limit", 32, "--protocols", "raft",
               "--out", tmp_path / "out", "--device", "cpu") == 0  # fmt: skip
    found = methods(tmp_path / "out" / "report.json")
    assert list(found) == ["first/model", "second/model"]
    assert found["first/model"]["total"] == found["second/model"]["total"]
    assert [p["name"] for p in found["first/model"]["protocols"]] == ["raft"]


def test_what_cannot_be_done_is_one_line(pairs, theirs, tmp_path, capsys):
    root = ("--root", pairs)
    (theirs / "four.pfm").unlink()
    fails(capsys, "give the dataset's folder (--root)")
    fails(capsys, "no prediction for 1 of 2 images: four", *root, "--predictions", theirs)
    fails(capsys, "none: no such folder", *root, "--predictions", tmp_path / "none")
    fails(capsys, "unknown protocol 'eth3d'", *root, "--method", "sgbm", "--protocols", "eth3d")
    fails(capsys, "pictures need --out", *root, "--method", "sgbm", "--worst")
    fails(capsys, "leave out --sheets", "--report", theirs, "--sheets", "--out", tmp_path)
    fails(capsys, "none.json: no such file", *root, "--against", tmp_path / "none.json")
    fails(capsys, "cannot search 192 pixels in an image 96 wide", *root, "--method", "sgbm",
          "--no-pad")  # fmt: skip
    fails(capsys, "named twice", *root, "--predictions", theirs, theirs)
    fails(capsys, "leave out --root, or --report", *root, "--report", theirs / "report.json")
    for option, value in (("--limit", 64), ("--protocols", "kitti"), ("--split", "test")):
        fails(capsys, f"leave out {option}, or", "--report", theirs, option, value)
    fails(capsys, "leave out options of networks", "--report", theirs, "--two-scales")
    for option in ("--confidence", "--two-scales"):
        fails(capsys, f"{option} is for networks", *root, "--method", "sgbm", option)


def test_a_report_that_is_read_keeps_its_pictures(pairs, tmp_path):
    out = tmp_path / "report"
    assert run("--root", pairs, "--method", "bm", "--worst", "--out", out) == 0
    page = (out / "report.md").read_text()
    assert "## The worst pairs" in page
    assert run("--report", out / "report.json", "--out", out) == 0
    assert (out / "report.md").read_text() == page
    assert run("--report", out / "report.json", "--out", tmp_path / "elsewhere") == 0
    assert "## The worst pairs" not in (tmp_path / "elsewhere" / "report.md").read_text()


def test_without_a_known_pixel_nothing_is_reported(pairs, tmp_path, capsys):
    shutil.copytree(pairs / "four", tmp_path / "blank")
    np.save(tmp_path / "blank" / "disp.npy", np.full(SIZE, np.nan, np.float32))
    line = ("--root", tmp_path / "blank", "--method", "bm", "--out", tmp_path / "out")
    fails(capsys, "no pixel has a known disparity below 192", *line)
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_default_split_is_one_that_has_ground_truth(tmp_path, capsys):
    from dataset_trees import kitti2015

    root = kitti2015(tmp_path / "kitti")
    assert run("--root", root, "--method", "bm", "--out", tmp_path / "out") == 0
    made = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert (made["data"], made["split"]) == ("kitti2015", "train")
    fails(capsys, "split test: the ground truth", "--root", root, "--split", "test")


def test_a_report_of_other_predictors_is_not_replaced_silently(pairs, tmp_path):
    line = ("--root", pairs, "--out", tmp_path, "--method")
    assert run(*line, "bm", "sgbm") == 0
    with pytest.warns(UserWarning, match="replaces a report of SGBM"):
        assert run(*line, "bm") == 0


@pytest.mark.parametrize(
    ("name", "epe", "bad"),
    [
        ("mb03_cones", 2.27, 30.7),
        ("mb01_venus", 1.33, 23.0),
        ("ft3d_train_a_0000_0006", 7.76, 19.3),
    ],
)
def test_sgbm_on_real_pairs_is_what_others_find(shared_data, tmp_path, name, epe, bad):
    """Others' figures for filled StereoSGBM, settings unknown: the neighbourhood is what counts."""
    root = shared_data / "stereo" / name
    command = f"--root {root} --method sgbm --no-pad --protocols pooled --out {tmp_path}"
    assert run(*command.split()) == 0
    total = methods(tmp_path / "report.json")["SGBM (filled)"]["total"]
    assert total["EPE"] == pytest.approx(epe, rel=0.1)
    assert total["bad-2"] == pytest.approx(bad, rel=0.1)
