"""The checker: a sound tree passes, and every kind of damage is told with its path."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import instereo2k, middeval3
from stereo_pairs import textured_pair

from ea_psmnet.__main__ import main
from ea_psmnet.datasets.check import CheckReport, check_dataset, spread
from ea_psmnet.datasets.check import files as check_frames
from ea_psmnet.datasets.check import pairs as check_pairs
from ea_psmnet.datasets.check import series as check_series
from ea_psmnet.datasets.check.files import values_of
from ea_psmnet.files import (
    disparity_values,
    read_image,
    read_pfm,
    write_image,
    write_npy,
    write_pfm,
)

NUMBERS = ("0006", "0007", "0008")
PART = "FlyingThings3D"


def path(root: Path, kind: str, view: str, number: str = "0007") -> Path:
    suffix = "pfm" if kind == "disparity" else "png"
    return root / PART / kind / "TRAIN/A/0000" / view / f"{number}.{suffix}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three sound frames in the released layout; the right truth does not matter here."""
    pair = textured_pair()
    for number in NUMBERS:
        write_image(path(tmp_path, "frames_cleanpass", "left", number), pair.left)
        write_image(path(tmp_path, "frames_cleanpass", "right", number), pair.right)
        for view in ("left", "right"):
            write_pfm(path(tmp_path, "disparity", view, number), pair.disparity)
    return tmp_path


def checked(root: Path, **options) -> CheckReport:
    return check_dataset(root, whole=False, progress=False, workers=2, **options)


def kinds(report: CheckReport) -> list[tuple[str, str]]:
    return [(problem.kind, Path(problem.where).name) for problem in report.problems]


def test_a_sound_tree_passes(tree):
    report = checked(tree)
    assert report.problems == ()
    assert (report.dataset, report.frames, report.truths) == ("sceneflow", 3, 6)
    assert len(report.pairs) == 3
    for pair in report.pairs:
        assert pair.matches > 50
        assert pair.across == pytest.approx(9, abs=4)
        assert abs(pair.down) < 0.2
        assert pair.errors["minus"] < 0.5 * min(pair.errors["plus"], pair.errors["zero"])
    assert report.to_text().endswith("nothing wrong")


def test_fewer_frames_than_published_are_a_problem_unless_a_part_is_meant(tree):
    report = check_dataset(tree, progress=False)
    assert [(p.kind, p.what) for p in report.problems] == [
        ("incomplete", "3 frames, 7460 published"),
        ("incomplete", "0 frames, 7460 published"),
        ("incomplete", "0 frames, 7470 published"),
    ]
    assert [(c.part[-1], c.found, c.published) for c in report.counts] == [
        ("A", 3, 7460),
        ("B", 0, 7460),
        ("C", 0, 7470),
    ]


def test_more_frames_than_published_are_no_problem():
    assert check_series.Count("train", "A", 8665, 8664).complete


def test_rendered_scenes_have_no_published_number_from_within_either(tree):
    (tree / "scenes.json").write_text("{}")
    assert check_dataset(tree / PART, progress=False).problems == ()


def test_a_damaged_split_beside_a_sound_one_is_told(tmp_path):
    pair = textured_pair()
    for split in ("train", "test"):
        folder = tmp_path / split / "pair0"
        write_image(folder / "left.png", pair.left)
        write_image(folder / "right.png", pair.right)
        write_npy(folder / "disp.npy", pair.disparity)
    assert checked(tmp_path).problems == ()
    write_pfm(tmp_path / "test" / "pair0" / "disp.pfm", pair.disparity)
    (problem,) = checked(tmp_path).problems
    assert "keep only one of them" in problem.what


def test_what_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        checked(tmp_path / "nowhere", name="eth3d")


def test_a_truncated_pfm_and_a_damaged_image(tree):
    for file in (path(tree, "disparity", "right"), path(tree, "frames_cleanpass", "left")):
        file.write_bytes(file.read_bytes()[:-100])
    report = checked(tree)
    assert kinds(report) == [("unreadable", "0007.png"), ("unreadable", "0007.pfm")]
    assert "left/0007.png" in report.problems[0].where
    assert "right/0007.pfm" in report.problems[1].where
    assert report.problems[1].what.startswith("200x96 pixels need 76800 bytes")
    assert [pair.name[-4:] for pair in report.pairs] == ["0006", "0008"]


def test_a_file_of_another_size(tree):
    write_pfm(path(tree, "disparity", "left"), np.ones((96, 199)))
    (problem,) = checked(tree).problems
    assert problem.kind == "size"
    assert problem.where == str(path(tree, "disparity", "left"))
    assert "199x96 pixels" in problem.what
    assert "200x96" in problem.what


def test_a_missing_partner_and_a_missing_truth(tree):
    for file in (path(tree, "frames_cleanpass", "right"), path(tree, "disparity", "left")):
        content = file.read_bytes()
        file.unlink()
        report = checked(tree)
        assert [problem.kind for problem in report.problems] == ["incomplete", "missing"]
        assert "1 of 9 files missing (11.11%)" in report.problems[0].what
        assert report.problems[1].where == str(file)
        file.write_bytes(content)


def test_all_missing_files_of_all_parts_are_told_at_once(tree, capsys):
    pair = textured_pair()
    monkaa = tree / "Monkaa"
    for number in NUMBERS:
        for view in ("left", "right"):
            write_image(monkaa / f"frames_cleanpass/flower/{view}/{number}.png", pair.left)
            write_pfm(monkaa / f"disparity/flower/{view}/{number}.pfm", pair.disparity)
    gone = [
        path(tree, "frames_cleanpass", "right", "0006"),
        path(tree, "disparity", "left", "0006"),
        path(tree, "disparity", "left", "0008"),
        monkaa / "disparity/flower/left/0007.pfm",
    ]
    for file in gone:
        file.unlink()
    report = checked(tree)
    first, *others = report.problems
    assert (first.kind, first.where) == ("incomplete", "train, clean")
    assert first.what == "4 of 18 files missing (22.22%); not checked further"
    assert [(p.kind, p.where) for p in others] == [("missing", str(file)) for file in gone]
    assert main(["data", "check", str(tree), "--no-whole"]) == 1
    told = capsys.readouterr().out
    assert all(str(file) in told for file in gone)


def test_missing_files_of_one_split_are_told_though_the_other_is_whole(tmp_path):
    instereo2k(tmp_path)
    gone = sorted((tmp_path / "InStereo2K/train").rglob("right.png"))
    for file in gone:
        file.unlink()
    problems = check_dataset(tmp_path, progress=False, pairs=0).problems
    assert [p.where for p in problems if p.kind == "missing"] == [str(file) for file in gone]


def test_swapped_views(tree):
    left, right = (path(tree, "frames_cleanpass", view) for view in ("left", "right"))
    one, other = read_image(left), read_image(right)
    write_image(left, other)
    write_image(right, one)
    report = checked(tree)
    assert ("swapped", "0007") in kinds(report)
    assert all(where == "0007" for _, where in kinds(report))


@pytest.mark.parametrize("rows", [6, -2, 2])
def test_a_pair_that_is_not_rectified(tree, rows):
    right = path(tree, "frames_cleanpass", "right")
    write_image(right, np.roll(read_image(right), rows, axis=0))
    report = checked(tree)
    assert kinds(report) == [("unrectified", "0007")]
    assert report.pairs[1].down == pytest.approx(-rows, abs=0.3)


def test_negative_disparities(tree):
    file = path(tree, "disparity", "left")
    write_pfm(file, -read_pfm(file))
    report = checked(tree)
    assert kinds(report) == [("negative", "0007.pfm"), ("sign", "0007")]
    assert "100.0% of its pixels are negative" in report.problems[0].what


def test_truth_of_another_frame(tree):
    file = path(tree, "disparity", "left")
    write_pfm(file, read_pfm(file) + 12)
    assert kinds(checked(tree)) == [("misfit", "0007")]


def test_odd_pixels_are_told_with_their_shares_and_are_no_problem(tree):
    file = path(tree, "disparity", "left")
    truth = read_pfm(file)
    truth[0, :4], truth[1, :3], truth[2, :2], truth[3, :1] = np.nan, np.inf, -1, 500
    write_pfm(file, truth)
    report = checked(tree)
    assert report.problems == ()
    odd = report.to_dict()["odd_pixels"]
    pixels = truth.size
    expected = {"nan": 4, "infinite": 3, "negative": 2, "over": 1}
    assert odd == {k: [{"path": str(file), "share": n / pixels}] for k, n in expected.items()}
    assert "over 192 pixels: in 1 of 6 files, at most 0.01% in " in report.to_text()


def test_values_are_counted_once_each():
    stored = np.array([[0, 5, 192, 193, 2000], [-1, -0.0, np.nan, np.inf, -np.inf]], np.float32)
    values = values_of(Path("x.pfm"), stored, 192)
    assert (values.pixels, values.known, values.negative) == (10, 6, 1)
    assert (values.nan, values.infinite, values.over, values.largest) == (1, 2, 2, 2000)


def test_a_truth_without_any_known_pixel(tree):
    write_pfm(path(tree, "disparity", "left"), np.full((96, 200), np.inf))
    assert kinds(checked(tree)) == [("no truth", "0007.pfm")]


def test_both_passes_and_both_splits_are_found(tree):
    source = tree / PART / "frames_cleanpass"
    for name in ("frames_finalpass/TRAIN", "frames_cleanpass/TEST"):
        for file in source.glob("TRAIN/A/0000/*/*.png"):
            write_image(tree / PART / name / file.relative_to(source / "TRAIN"), read_image(file))
    for file in (tree / PART / "disparity").glob("TRAIN/A/0000/*/*.pfm"):
        below = file.relative_to(tree / PART / "disparity/TRAIN")
        write_pfm(tree / PART / "disparity/TEST" / below, read_pfm(file))
    report = checked(tree, pairs=0)
    found = {count.series: count.found for count in report.counts if count.found}
    assert found == {"train, clean": 3, "train, final": 3, "test, clean": 3}
    assert report.problems == ()


def test_a_truth_that_passes_share_is_told_once(tree):
    source = tree / PART / "frames_cleanpass"
    for file in source.rglob("*.png"):
        below = file.relative_to(source)
        write_image(tree / PART / "frames_finalpass" / below, read_image(file))
    file = path(tree, "disparity", "right")
    file.write_bytes(b"Pf")
    report = checked(tree, pairs=0)
    assert kinds(report) == [("unreadable", "0007.pfm")]
    assert (report.frames, report.truths) == (6, 5)


def test_a_truth_that_passes_share_is_opened_once(tree, monkeypatch):
    shutil.copytree(tree / PART / "frames_cleanpass", tree / PART / "frames_finalpass")
    opened = []

    def reading(path, **options):
        opened.append(path)
        return disparity_values(path, **options)

    monkeypatch.setattr(check_frames, "disparity_values", reading)
    assert checked(tree, pairs=0).frames == 6
    assert len(opened) == len(set(opened)) == 6


def test_a_part_without_images_and_a_set_that_is_not_there_are_problems(tree):
    shutil.rmtree(tree / PART / "frames_cleanpass")
    (problem,) = checked(tree).problems
    assert (problem.kind, problem.where) == ("missing", "train, clean")
    assert "frames_cleanpass/TRAIN: no such folder" in problem.what
    (problem,) = checked(instereo2k(tree / "other"), name="sceneflow").problems
    assert "no part of Scene Flow's train split" in problem.what


def test_all_resolutions_are_looked_at(tmp_path):
    for size in "HQ":
        middeval3(tmp_path, size=size)
    report = checked(tmp_path, pairs=0)
    assert [(c.series, c.found) for c in report.counts] == [("train, H", 2), ("train, Q", 2)]
    assert report.problems == ()


@pytest.mark.parametrize("wrong", [0, -1, np.inf, np.nan])
def test_the_maximum_is_a_number_of_pixels(tree, wrong):
    with pytest.raises(ValueError, match="expected a number of pixels over 0"):
        checked(tree, max_disparity=wrong)


def test_an_unknown_dataset_is_told(tree):
    with pytest.raises(ValueError, match="unknown dataset 'kitty': choose from"):
        checked(tree, name="kitty")


def test_pairs_of_a_folder_and_an_incomplete_one(tmp_path):
    pair = textured_pair()
    for name in ("a", "b"):
        write_image(tmp_path / name / "left.png", pair.left)
        write_image(tmp_path / name / "right.png", pair.right)
        write_npy(tmp_path / name / "disp.npy", pair.disparity)
    report = check_dataset(tmp_path, progress=False)
    assert (report.dataset, report.frames, report.problems) == ("folder", 2, ())
    (tmp_path / "b" / "right.png").unlink()
    report = check_dataset(tmp_path, progress=False)
    assert [problem.kind for problem in report.problems] == ["incomplete", "missing"]
    (tmp_path / "a" / "disp.npy").unlink()
    report = check_dataset(tmp_path, progress=False)
    assert [problem.kind for problem in report.problems] == ["incomplete", "missing", "missing"]
    assert [problem.what.split(" (")[0] for problem in report.problems[1:]] == [
        "no ground truth",
        "no right image",
    ]


def test_pairs_without_truth_are_checked(tmp_path):
    pair = textured_pair()
    for name in ("a", "b"):
        write_image(tmp_path / name / "left.png", pair.left)
        write_image(tmp_path / name / "right.png", pair.right)
    report = check_dataset(tmp_path, progress=False)
    assert (report.frames, report.truths, report.without_truth, report.problems) == (2, 0, 2, ())
    assert (
        "frames opened: 2; ground truth files read: 0; frames without ground truth: 2"
        in report.to_text()
    )
    assert [pair.errors for pair in report.pairs] == [{}, {}]
    write_image(tmp_path / "b" / "right.png", np.roll(pair.right, 6, axis=0))
    assert kinds(check_dataset(tmp_path, progress=False)) == [("unrectified", "b")]


def test_a_pair_without_truth_among_others_is_told_and_looked_at(tmp_path):
    pair = textured_pair()
    for name in ("a", "b"):
        write_image(tmp_path / name / "left.png", pair.left)
        write_image(tmp_path / name / "right.png", pair.right)
    write_npy(tmp_path / "a" / "disp.npy", pair.disparity)
    report = check_dataset(tmp_path, progress=False)
    assert kinds(report) == [("missing", "b")]
    assert (report.frames, len(report.pairs)) == (2, 2)


def test_a_list_of_pairs_without_truth_is_checked(tmp_path):
    pair = textured_pair()
    write_image(tmp_path / "a l.png", pair.left)
    write_image(tmp_path / "a r.png", pair.right)
    (tmp_path / "pairs.txt").write_text("a l.png a r.png\n")
    report = check_dataset(tmp_path / "pairs.txt", progress=False)
    assert (report.dataset, report.frames, report.problems) == ("list", 1, ())


def one_pair(root: Path, truth: np.ndarray) -> Path:
    pair = textured_pair()
    write_image(root / "a" / "left.png", pair.left)
    write_image(root / "a" / "right.png", pair.right)
    write_npy(root / "a" / "disp.npy", truth)
    return root


def test_zeros_that_stand_for_unknown_are_told(tmp_path):
    truth = textured_pair().disparity
    truth[:10] = 0
    (problem,) = check_dataset(one_pair(tmp_path, truth), progress=False).problems
    assert (problem.kind, Path(problem.where).name) == ("zeros", "disp.npy")
    assert problem.what.startswith("10.4% of its pixels are exactly 0, and all others at least 5.0")
    truth[10:20] = 0.3  # what is far away
    report = check_dataset(one_pair(tmp_path, truth), progress=False, pairs=0)
    assert report.problems == ()
    assert report.to_dict()["odd_pixels"]["zero"][0]["share"] == pytest.approx(10 / 96)
    assert kinds(check_dataset(one_pair(tmp_path, truth * 0), pairs=0, progress=False)) == [
        ("zeros", "disp.npy")
    ]


def test_truth_wholly_beyond_the_range_is_told(tmp_path):
    truth = textured_pair().disparity * 100
    truth[0] = np.nan
    (problem,) = check_dataset(one_pair(tmp_path, truth), progress=False, pairs=0).problems
    assert (problem.kind, Path(problem.where).name) == ("beyond", "disp.npy")
    assert "every valid disparity is over 192 pixels (500.0 to 3000.0)" in problem.what
    report = check_dataset(tmp_path, progress=False, pairs=0, max_disparity=3000)
    assert report.problems == ()


def test_a_dark_image_is_told_and_read(tmp_path):
    root = one_pair(tmp_path, textured_pair().disparity)
    (root / "a" / "left.png").unlink()
    dark = (textured_pair().left[..., 0].astype(np.uint16) * 16).astype(">u2")
    (root / "a" / "left.pgm").write_bytes(b"P5 200 96 65535\n" + dark.tobytes())
    report = check_dataset(root, progress=False)
    assert kinds(report)[0] == ("dark", "left.pgm")
    assert report.problems[0].what.startswith("16-bit image of values up to")


class UnforeseenError(Exception):
    """Of a kind that no reader is to raise."""


def test_readers_that_fail_in_any_way_are_findings(tree, monkeypatch, capsys):
    def reading(path, **_):
        if path.name == "0007.pfm":
            raise UnforeseenError("line one\nline two")
        return disparity_values(path)

    monkeypatch.setattr(check_frames, "disparity_values", reading)
    assert main(["data", "check", str(tree), "--no-whole"]) == 1
    told = capsys.readouterr().out
    assert "left/0007.pfm: line one line two" in told
    assert "right/0007.pfm: line one line two" in told
    assert "2 problems" in told


def test_pairs_that_cannot_be_compared_are_findings(tree, monkeypatch):
    def comparing(*_):
        raise UnforeseenError

    monkeypatch.setattr(check_pairs, "warp_errors", comparing)
    report = checked(tree)
    assert [(p.kind, p.what) for p in report.problems] == [("not compared", "UnforeseenError")] * 3


def test_a_listing_that_fails_is_a_finding(tree, monkeypatch, capsys):
    def building(*_, split, **__):
        raise UnforeseenError

    monkeypatch.setattr(check_series, "build_dataset", building)
    assert main(["data", "check", str(tree), "--no-whole"]) == 1
    assert "missing: 1\n  train, clean: UnforeseenError\n1 problem\n" in capsys.readouterr().out


@pytest.mark.slow
def test_images_wider_than_opencv_bears_are_compared(tmp_path):
    pair = textured_pair(48)
    wide = one_pair(tmp_path, np.tile(pair.disparity, 164)) / "a"  # 32,800 columns
    write_image(wide / "left.png", np.tile(pair.left, (1, 164, 1)))
    write_image(wide / "right.png", np.tile(pair.right, (1, 164, 1)))
    report = check_dataset(tmp_path, progress=False)
    assert report.problems == ()
    assert report.pairs[0].errors["minus"] < 0.5 * report.pairs[0].errors["zero"]
    assert main(["data", "show", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 0


def test_names_that_no_terminal_takes(tmp_path, capsys):
    root = one_pair(tmp_path / os.fsdecode(b"caf\xe9"), textured_pair().disparity)
    (root / "a").rename(root / "line\nbreak")
    (root / "line\nbreak" / "disp.npy").write_bytes(b"PK")
    out = tmp_path / "report.json"
    assert main(["data", "check", str(root), "--out", str(out)]) == 1
    told = capsys.readouterr().out
    told.encode()
    assert r"caf\xe9/line\nbreak/disp.npy: damaged" in told
    assert json.loads(out.read_text())["problems"][0]["where"].endswith("line\nbreak/disp.npy")
    write_npy(root / "line\nbreak" / "disp.npy", textured_pair().disparity)
    assert main(["data", "show", str(root), "--out", str(tmp_path / "sheet.png")]) == 0


def test_textureless_views_say_nothing(tree):
    for number in NUMBERS:
        for view in ("left", "right"):
            file = path(tree, "frames_cleanpass", view, number)
            write_image(file, np.full((96, 200, 3), 90, np.uint8))
    report = checked(tree)
    assert [(pair.matches, pair.across, pair.down) for pair in report.pairs] == [
        (0, None, None)
    ] * 3


def test_places_are_spread_from_first_to_last():
    assert spread(100, 3) == [0, 50, 99]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == spread(5, 0) == []


def test_the_command_tells_by_its_exit_code(tree, capsys):
    out = tree / "report.json"
    command = ["data", "check", str(tree), "--no-whole", "--out", str(out)]
    assert main(command) == 0
    assert json.loads(out.read_text())["ok"] is True
    path(tree, "disparity", "left").write_bytes(b"Pf")
    assert main(command) == 1
    report = json.loads(out.read_text())
    assert report["ok"] is False
    assert report["problems"][0]["kind"] == "unreadable"
    assert "left/0007.pfm: no PFM header" in capsys.readouterr().out
    assert main(["data", "check", str(tree / "none")]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err


def test_all_of_the_shared_pairs_but_one_are_sound(shared_data):
    """One has its right view two rows lower: the warp error falls by a quarter if it is raised."""
    report = check_dataset(shared_data / "stereo", pairs=6, progress=False)
    assert kinds(report) == [("unrectified", "ntu_aug_4")]
