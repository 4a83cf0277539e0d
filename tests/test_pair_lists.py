"""Lists of pairs: lines and tables, their columns, and the names of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ea_psmnet.pair_lists import pair_name, read_pair_list


def rows(path, *needed):
    """Names and paths of a list, relative to its folder."""
    pairs = read_pair_list(path, needed or ("left", "right"))
    return {
        pair.name: [file.relative_to(path.parent).as_posix() for file in pair.files.values()]
        for pair in pairs
    }


@pytest.mark.parametrize(
    "text",
    [
        "a/left 1.png,a/right 1.png\n",
        "a/left 1.png , a/right 1.png\n",
        "a/left 1.png\ta/right 1.png\n",
        "a/left 1.png a/right 1.png\r\n",
        "# a comment\n\n'a/left 1.png' \"a/right 1.png\"\n",
        "left,right\na/left 1.png,a/right 1.png\n",
        "right left\na/right 1.png a/left 1.png\n",
    ],
)
def test_lines_may_be_separated_in_several_ways(text, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    (pair,) = read_pair_list(path)
    assert pair.name == "a/1"
    assert [pair.files[view].name for view in ("left", "right")] == ["left 1.png", "right 1.png"]


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("columns", [[], ["left", "right", "disparity"]])
def test_tables_need_no_line_of_columns(suffix, mark, columns, tmp_path):
    path = tmp_path / f"pairs.{suffix}"
    lines = [columns, ["# nothing"], ['"a/left 1.png"', "a/right 1.png", "a/d.pfm"]]
    path.write_text("\n".join(mark.join(cells) for cells in lines if cells), encoding="utf-8-sig")
    assert rows(path, "left", "right", "disparity") == {
        "a/1": ["a/left 1.png", "a/right 1.png", "a/d.pfm"]
    }


@pytest.mark.parametrize(
    ("left", "right", "name"),
    [
        ("training/image_2/000000_10.png", "training/image_3/000000_10.png", "training/000000_10"),
        ("TRAIN/A/0000/left/0006.webp", "TRAIN/A/0000/right/0006.webp", "TRAIN/A/0000/0006"),
        ("a/left.png", "a/right.png", "a"),
        ("a/im0.png", "a/im1.png", "a"),
        ("a_l/1.png", "a_r/1.png", "a/1"),
        ("/data/a/left.png", "/data/a/right.png", "data/a"),
        ("../../x.png", "../../y/x.png", "x"),
        ("l.png", "r.png", "lists"),
    ],
)
def test_names_are_what_both_paths_share(left, right, name, tmp_path):
    path = tmp_path / "lists" / "pairs.csv"
    path.parent.mkdir()
    path.write_text(f"left,right\n{left},{right}\n")
    assert [pair.name for pair in read_pair_list(path)] == [name]


def test_where_names_would_be_the_same_they_are_those_of_the_left_images(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("image_2/0.png image_3/0.png\nimage_0/0.png image_1/0.png\n")
    assert list(rows(path)) == ["image_2/0", "image_0/0"]


@pytest.mark.parametrize(
    ("wrong", "side"), [("c.png", "right"), (",c.png", "left"), ("'c.png'", "right")]
)
def test_a_wrong_line_is_named(wrong, side, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(f"a.png b.png\n{wrong}\n")
    told = rf"pairs\.txt, line 2: no {side}; expected 'LEFT RIGHT' on"
    with pytest.raises(ValueError, match=told):
        read_pair_list(path)


@pytest.mark.parametrize("column", ["", "left,right,disparity\n"])
def test_a_huge_field_is_one_line(tmp_path, column):
    (tmp_path / "a.csv").write_text(f"{column}{'x' * 200_000}")
    with pytest.raises(ValueError, match=r"a\.csv, line [12]: not a row of a table \(field larger"):
        read_pair_list(tmp_path / "a.csv")


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("é.png b.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt: not a list of pairs, not UTF-8 text"):
        read_pair_list(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("columns", "told"),
    [("left,rihgt,disparity", "unknown column 'rihgt'"), ("left,right,left", "named twice")],
)
def test_wrong_columns_are_named(columns, told, tmp_path):
    (tmp_path / "a.csv").write_text(f"{columns}\nl.png,r.png,d.pfm\n")
    with pytest.raises(ValueError, match=rf"a\.csv, line 1: .*{told}"):
        read_pair_list(tmp_path / "a.csv")


@pytest.mark.parametrize("again", ["a/left.png", "{here}/a/left.png", "b/../a/left.png"])
def test_one_image_in_two_lines_is_refused(again, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"a/left.png a/right.png\n{again.format(here=tmp_path)} a/right.png\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: .*a/left\.png is listed twice"):
        read_pair_list(path)


def test_two_pairs_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("b/1.png c/1.png\n../b/1.png ../c/1.png\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: another pair is called b/1"):
        read_pair_list(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("left", "right", "name"),
    [
        ("a/left.png", "a/right.png", "a"),
        ("a/im0.png", "a/im1.png", "a"),
        ("a/view1.png", "a/view5.png", "a"),
        ("left/0006.png", "right/0006.webp", "0006"),
        ("image_2/000000_10.png", "image_3/000000_10.png", "000000_10"),
        ("hall_left.png", "hall_right.png", "hall"),
        ("left_0001.png", "right_0001.png", "0001"),
        ("L0001.png", "R0001.png", "0001"),
        ("day.left.01.jpg", "day.right.01.jpg", "day.01"),
        ("b/one.png", "b/another one.png", "b"),
    ],
)
def test_a_pair_is_called_what_tells_it_from_others(left, right, name):
    assert pair_name(Path(left), Path(right)) == name
