"""Pairs from what people have: every way to name them, and their names."""

from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.files import write_image
from ea_psmnet.inference.inputs import PairSource, find_pairs, split_views


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def found(root, *inputs, layout="separate"):
    pairs = find_pairs([root / each for each in inputs], layout).pairs
    return {p.name: (str(p.left.relative_to(root)), str(p.right.relative_to(root))) for p in pairs}


FOLDERS = {
    "two folders of equal names": (
        ["l/a/1.png", "l/2.png", "r/a/1.jpg", "r/2.png", "r/notes.md"],
        ["l", "r"],
        {"2": ("l/2.png", "r/2.png"), "a/1": ("l/a/1.png", "r/a/1.jpg")},
    ),
    "hidden files and folders": (
        ["h/a/left.png", "h/a/right.png", "h/a/._left.png", "h/.b/left.png", "h/.b/right.png"],
        ["h"],
        {"a": ("h/a/left.png", "h/a/right.png")},
    ),
    "words that contain left and right": (
        [
            *("w/bright_left.png", "w/bright_right.png", "w/cleft.png", "w/copyright.png"),
            *("w/the_bright.png", "w/rgbLeft.png", "w/rgbRight.png"),
        ],
        ["w"],
        {
            "bright": ("w/bright_left.png", "w/bright_right.png"),
            "rgb": ("w/rgbLeft.png", "w/rgbRight.png"),
        },
    ),
    "two folders whose names say left and right": (
        ["x/left_01.png", "x/left_02.png", "y/right_02.png", "y/right_01.png"],
        ["x", "y"],
        {"01": ("x/left_01.png", "y/right_01.png"), "02": ("x/left_02.png", "y/right_02.png")},
    ),
    "a folder of pairs": (
        ["s/a/left.png", "s/a/right.png", "s/b/im0.png", "s/b/im1.png", "s/b/disp0.png"],
        ["s"],
        {"a": ("s/a/left.png", "s/a/right.png"), "b": ("s/b/im0.png", "s/b/im1.png")},
    ),
    "one pair": (
        ["s/left.png", "s/right.png", "s/disp_left.png", "s/disp_right.png"],
        ["s"],
        {"s": ("s/left.png", "s/right.png")},
    ),
    "kitti": (
        ["k/image_2/0_10.png", "k/image_3/0_10.png", "k/disp_occ_0/0_10.png"],
        ["k"],
        {"0_10": ("k/image_2/0_10.png", "k/image_3/0_10.png")},
    ),
    "pairs beside each other": (
        ["f/L01.png", "f/R01.png", "f/day_left.02.png", "f/day_right.02.png"],
        ["f"],
        {
            "01": ("f/L01.png", "f/R01.png"),
            "day_02": ("f/day_left.02.png", "f/day_right.02.png"),
        },
    ),
    "names that contain words for maps": (
        [f"f/{n}_{s}.png" for n in ("display", "overflow", "soccer") for s in ("left", "right")],
        ["f"],
        {n: (f"f/{n}_left.png", f"f/{n}_right.png") for n in ("display", "overflow", "soccer")},
    ),
    "folders of pairs, named one by one": (
        ["a/left.png", "a/right.png", "b/left.png", "b/right.png"],
        ["a", "b"],
        {"a": ("a/left.png", "a/right.png"), "b": ("b/left.png", "b/right.png")},
    ),
    "two patterns": (
        ["p/left/1.png", "p/left/2.png", "p/right/1.png", "p/right/2.png"],
        ["p/left/*.png", "p/right/*.png"],
        {n: (f"p/left/{n}.png", f"p/right/{n}.png") for n in "12"},
    ),
    "two patterns over folders with equal names": (
        ["p/left/a/1.png", "p/left/b/1.png", "p/right/a/1.png", "p/right/b/1.png"],
        ["p/left/*/*.png", "p/right/*/*.png"],
        {f"{n}/1": (f"p/left/{n}/1.png", f"p/right/{n}/1.png") for n in "ab"},
    ),
    "images that the shell listed": (
        ["l/1.png", "l/2.png", "r/1.png", "r/2.png"],
        ["l/1.png", "l/2.png", "r/1.png", "r/2.png"],
        {n: (f"l/{n}.png", f"r/{n}.png") for n in "12"},
    ),
    "two images": (
        ["hall_left.png", "hall_right.png"],
        ["hall_left.png", "hall_right.png"],
        {"hall": ("hall_left.png", "hall_right.png")},
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_pairs_are_found_and_named(case, tmp_path):
    files, inputs, expected = FOLDERS[case]
    assert found(tree(tmp_path, *files), *inputs) == expected


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    tree(tmp_path, "f/a/left.png", "f/a/right.png")
    (tmp_path / "f" / "latest").symlink_to(".")
    (tmp_path / "f" / "a" / "up").symlink_to("..")
    assert found(tmp_path, "f") == {"a": ("f/a/left.png", "f/a/right.png")}


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_a_list_names_pairs_beside_it(suffix, tmp_path):
    tree(tmp_path, "a/left 1.png", "a/right 1.png")
    (tmp_path / f"pairs{suffix}").write_text("left,right\na/left 1.png,a/right 1.png,a/disp.pfm\n")
    assert found(tmp_path, f"pairs{suffix}") == {"a/1": ("a/left 1.png", "a/right 1.png")}


def test_images_without_a_partner_are_told(tmp_path):
    tree(tmp_path, "l/1.png", "l/2.png", "r/1.png", "r/3.png")
    both = find_pairs([tmp_path / "l", tmp_path / "r"])
    assert [pair.name for pair in both.pairs] == ["1"]
    assert [path.name for path in both.alone] == ["2.png", "3.png"]


def test_images_without_a_partner_are_told_in_folders_of_pairs(tmp_path):
    tree(tmp_path, "a/left/1.png", "a/left/9.png", "a/right/1.png", "b/left.png",
         "c/left.png", "c/right.png")  # fmt: skip
    both = find_pairs([tmp_path])
    assert [pair.name for pair in both.pairs] == ["a/1", "c"]
    assert [path.relative_to(tmp_path).as_posix() for path in both.alone] == [
        "a/left/9.png",
        "b/left.png",
    ]


def test_two_pairs_of_one_name_are_refused(tmp_path):
    tree(tmp_path, "a/x/left.png", "a/x/right.png", "b/x/left.png", "b/x/right.png")
    with pytest.raises(ValueError, match="would both be called x"):
        find_pairs([tmp_path / "a/x", tmp_path / "b/x"])


@pytest.mark.parametrize("inputs", [["two"], ["two/left", "two/right"], ["one"], ["stems"]])
def test_images_that_differ_in_their_ending_alone_are_refused(inputs, tmp_path):
    views = [f"{place}.{ending}" for place in ("left/1", "right/1") for ending in ("png", "jpg")]
    tree(tmp_path, *(f"two/{view}" for view in views))
    tree(tmp_path, "one/left.png", "one/left.jpg", "one/right.png", "one/preview.png")
    tree(tmp_path, "stems/im0.png", "stems/im1.png", "stems/im1.jpg")
    with pytest.raises(ValueError, match=r"jpg and .*png differ only in their endings"):
        find_pairs([tmp_path / each for each in inputs])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no images"),
        (["1.png"], "one image: give LEFT and RIGHT, or --layout"),
        (["1.png", "2.png", "3.png"], "3 images: give LEFT and RIGHT"),
        (["*.jpg"], "nothing matches this pattern"),
        (["nosuch"], "nosuch: no such file or folder"),
        (["1.png", "nosuch.txt"], "nosuch.txt: no such file or folder"),
        (["empty"], "no pairs found; give --layout"),
    ],
)
def test_what_is_no_pair_is_told(inputs, message, tmp_path):
    tree(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_pairs([tmp_path / each for each in inputs])


@pytest.mark.parametrize(("layout", "axis"), [("side-by-side", 1), ("top-bottom", 0)])
def test_both_views_in_one_image(layout, axis, tmp_path):
    views = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    write_image(tmp_path / "in" / "both.png", np.concatenate(list(views), axis=axis))
    (pair,) = find_pairs([tmp_path / "in"], layout).pairs
    assert pair.name == "both"
    np.testing.assert_array_equal(np.stack(pair.read()), views)
    assert [p.name for p in find_pairs([tmp_path / "*"], layout).pairs] == ["both"]
    write_image(tmp_path / "more" / "both.png", np.concatenate(list(views), axis=axis))
    names = [p.name for p in find_pairs([tmp_path / "*"], layout).pairs]
    assert names == ["in/both", "more/both"]
    record = pair.record()
    assert record["left"]["path"] != record["right"]["path"]
    assert record["left"]["sha256"] != record["right"]["sha256"]


def test_views_of_different_sizes_are_refused(tmp_path):
    path = tmp_path / "odd.png"
    write_image(path, np.zeros((4, 7, 3), np.uint8))
    with pytest.raises(ValueError, match=r"odd\.png: its width is 7 px, odd"):
        PairSource("odd", path, path, "side-by-side").read()
    with pytest.raises(ValueError, match="its height is 3 px"):
        split_views(np.zeros((3, 4, 3), np.uint8), "top-bottom")


def test_all_kinds_of_pairs_at_hand_are_found(shared_data):
    pairs = find_pairs([shared_data / "stereo"]).pairs
    folders = sorted(path.parent.name for path in (shared_data / "stereo").glob("*/left.png"))
    assert [pair.name for pair in pairs] == folders
    assert all(pair.right == Path(pair.left).with_name("right.png") for pair in pairs)
