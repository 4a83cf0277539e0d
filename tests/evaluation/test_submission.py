"""Archives for the benchmarks' servers, on image trees that the tests write."""

import zipfile

import cv2
import numpy as np
import pytest

from ea_psmnet.evaluation.submission import (
    BENCHMARKS,
    find_pairs,
    stated_disparities,
    write_submission,
)
from ea_psmnet.files import read_disparity, read_image, write_image

SIZE = (6, 9)


def disparity_of(left, right):
    """A disparity that tells which pair it is of: 0.5 px plus the brightness of the left image."""
    return np.full(left.shape[:2], 0.5 + left[0, 0, 0], np.float32)


def write_pairs(folder, names):
    """Write pairs whose left image has the brightness 10, 20, ..."""
    for number, (left, right) in enumerate(names):
        for view in (left, right):
            (folder / view).parent.mkdir(parents=True, exist_ok=True)
            write_image(folder / view, np.full((*SIZE, 3), 10 * (number + 1), np.uint8))


TREES = {
    "kitti2012": [
        (f"testing/colored_0/{frame}.png", f"testing/colored_1/{frame}.png")
        for frame in ("000000_10", "000001_10")
    ],
    "kitti2015": [
        (f"testing/image_2/{frame}.png", f"testing/image_3/{frame}.png")
        for frame in ("000000_10", "000001_10")
    ],
    "middlebury": [
        (f"{folder}/im0.png", f"{folder}/im1.png")
        for folder in ("trainingH/Adirondack", "testH/Crusade")
    ],
    "eth3d": [
        (f"{folder}/im0.png", f"{folder}/im1.png")
        for folder in ("two_view_training/playground_1l", "two_view_testing/lakeside_1l")
    ],
}
# As in the development kits and upload pages of the servers.
ARCHIVES = {
    "kitti2012": ["000000_10.png", "000001_10.png"],
    "kitti2015": ["disp_0/000000_10.png", "disp_0/000001_10.png"],
    "middlebury": [
        "testH/Crusade/disp0Ours.pfm",
        "testH/Crusade/timeOurs.txt",
        "trainingH/Adirondack/disp0Ours.pfm",
        "trainingH/Adirondack/timeOurs.txt",
    ],
    "eth3d": [
        "low_res_two_view/lakeside_1l.pfm",
        "low_res_two_view/lakeside_1l.txt",
        "low_res_two_view/playground_1l.pfm",
        "low_res_two_view/playground_1l.txt",
    ],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_names_formats_and_values(name, tmp_path):
    write_pairs(tmp_path / "images", TREES[name])
    entries = find_pairs(name, tmp_path / "images", method="Ours")
    out = tmp_path / "out.zip"
    seconds = write_submission(out, name, entries, disparity_of, {"weights": "a"})
    assert seconds > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.zip"]
    with zipfile.ZipFile(out) as archive:
        assert sorted(archive.namelist()) == ARCHIVES[name]
        archive.extractall(tmp_path / "unpacked")
    for number, entry in enumerate(entries):
        path = tmp_path / "unpacked" / entry.map
        disparity, valid = read_disparity(path)
        assert valid.all()
        np.testing.assert_array_equal(disparity, np.full(SIZE, 10.5 + 10 * number, np.float32))
        if path.suffix == ".png":
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint16
        if entry.time:
            words = (tmp_path / "unpacked" / entry.time).read_text().split()
            assert float(words[-1]) >= 0
            assert words[:-1] == (["runtime"] if name == "eth3d" else [])


def test_later_moments_of_kitti_are_not_submitted(tmp_path):
    write_pairs(tmp_path, [(f"testing/image_2/{f}.png", f"testing/image_3/{f}.png")
                           for f in ("000000_10", "000000_11")])  # fmt: skip
    assert [e.left.name for e in find_pairs("kitti2015", tmp_path, method="A")] == ["000000_10.png"]


def test_continues_after_an_interruption(tmp_path):
    write_pairs(tmp_path / "images", TREES["eth3d"])
    entries = find_pairs("eth3d", tmp_path / "images", method="Ours")
    calls = []

    def failing(left, right):
        calls.append(left[0, 0, 0])
        if len(calls) == 3:  # a call without timing, one for the first pair, this one
            raise KeyboardInterrupt
        return disparity_of(left, right)

    out = tmp_path / "out.zip"
    with pytest.raises(KeyboardInterrupt):
        write_submission(out, "eth3d", entries, failing, {"weights": "a"})
    assert not out.exists()
    with pytest.raises(ValueError, match="weights"):
        write_submission(out, "eth3d", entries, disparity_of, {"weights": "b"})
    calls.clear()
    write_submission(out, "eth3d", entries, failing, {"weights": "a"})
    assert calls == [20, 20]  # only the second pair
    assert len(zipfile.ZipFile(out).namelist()) == 4


def test_a_pair_that_changed_meanwhile_is_predicted_again(tmp_path):
    write_pairs(tmp_path / "images", TREES["eth3d"])
    entries, calls = find_pairs("eth3d", tmp_path / "images", method="Ours"), []

    def failing(left, right):
        calls.append(left[0, 0, 0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return disparity_of(left, right)

    with pytest.raises(KeyboardInterrupt):
        write_submission(tmp_path / "out.zip", "eth3d", entries, failing, {})
    write_image(entries[0].left, np.full_like(read_image(entries[0].left), 70))
    write_submission(tmp_path / "out.zip", "eth3d", entries, disparity_of, {})
    write_submission(tmp_path / "new.zip", "eth3d", entries, disparity_of, {})
    archives = [zipfile.ZipFile(tmp_path / f"{name}.zip") for name in ("out", "new")]
    first, second = (archive.read(entries[0].map) for archive in archives)
    assert first == second


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("kitti2015", {"method": "A"}, "no images of kitti2015"),
        ("middlebury", {"method": "a/b"}, "letters"),
        ("middlebury", {"method": "A", "resolution": "X"}, "resolution"),
    ],
)
def test_bad_input(name, arguments, message, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_pairs(name, tmp_path, **arguments)


def test_a_missing_right_image_and_several_sizes(tmp_path):
    write_pairs(tmp_path, TREES["middlebury"])
    (tmp_path / "testH/Crusade/im1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"im1\.png: missing"):
        find_pairs("middlebury", tmp_path, method="A")
    write_pairs(tmp_path, [("trainingQ/Jadeplant/im0.png", "trainingQ/Jadeplant/im1.png")])
    with pytest.raises(ValueError, match="choose a --resolution"):
        find_pairs("middlebury", tmp_path, method="A")
    assert len(find_pairs("middlebury", tmp_path, method="A", resolution="Q")) == 1


def test_the_folder_may_lie_in_one_of_the_benchmarks_name(tmp_path):
    write_pairs(tmp_path / "MiddEval3", TREES["middlebury"])
    assert len(find_pairs("middlebury", tmp_path, method="A")) == 2


def test_the_number_of_disparities_that_calibrations_state(tmp_path):
    write_pairs(tmp_path, TREES["middlebury"])
    entries = find_pairs("middlebury", tmp_path, method="A")
    assert stated_disparities(entries) == 0
    (tmp_path / "trainingH/Adirondack/calib.txt").write_text("doffs=0\nndisp=290\nisint=0\n")
    (tmp_path / "testH/Crusade/calib.txt").write_text("ndisp=400\n")
    assert stated_disparities(entries) == 400
