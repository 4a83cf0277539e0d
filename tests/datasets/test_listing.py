"""Lists of pairs: others' line format, tables with named columns, and what is wrong in them."""

from __future__ import annotations

import pytest
from dataset_trees import folder, kitti2015

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.listing import PairList
from ea_psmnet.files import write_text
from ea_psmnet.inference.inputs import find_pairs

GWCNET = (
    "training/image_2/00000{0}_10.png training/image_3/00000{0}_10.png "
    "training/disp_occ_0/00000{0}_10.png"
)


@pytest.mark.parametrize("suffix", [".txt", ".lst"])
def test_others_lists_in_their_own_order(tmp_path, suffix):
    kitti2015(tmp_path / "data")
    path = tmp_path / f"lists/kitti15_train{suffix}"
    write_text(path, f"# training\n{GWCNET.format(1)}\n\n{GWCNET.format(0)} further columns\r\n")
    assert detect_dataset(path) == "list"
    dataset = build_dataset("list", path, base=tmp_path / "data")
    assert [s.name for s in dataset] == [f"training/00000{k}_10" for k in (1, 0)]
    assert dataset[0].disparity.max() == 17
    assert not dataset.has_right_truth


def test_paths_are_relative_to_the_list(tmp_path):
    write_text(kitti2015(tmp_path) / "train.txt", GWCNET.format(0))
    assert len(PairList(tmp_path / "train.txt")) == 1


def test_predictions_of_a_list_have_the_names_of_its_pairs(tmp_path):
    path = kitti2015(tmp_path) / "a.txt"
    write_text(path, f"{GWCNET.format(0)}\n{GWCNET.format(1)}\n")
    assert [pair.name for pair in find_pairs([path]).pairs] == [s.name for s in PairList(path)]


def test_paths_may_be_relative_to_where_the_program_runs(tmp_path, monkeypatch):
    """As lists that come with code need it: a command has no other way to tell the folder."""
    write_text(tmp_path / "lists/train.txt", GWCNET.format(1))
    monkeypatch.chdir(kitti2015(tmp_path / "data"))
    assert build_dataset("auto", tmp_path / "lists/train.txt")[0].disparity.max() == 17
    kitti2015(tmp_path / "lists")
    (frame,) = PairList(tmp_path / "lists/train.txt").frames
    assert frame.left.is_relative_to(tmp_path / "lists")


def test_a_table_with_blanks_in_names_and_empty_cells(tmp_path):
    folder(tmp_path)
    for k in (0, 1):
        (tmp_path / f"pair{k}").rename(tmp_path / f"my pair {k}")
    rows = [
        "right, left, disparity, nonocc",
        "my pair 0/right.png ,my pair 0/left.png,my pair 0/disp.npy,my pair 0/nonocc.png",
        "my pair 1/right.png,my pair 1/left.png,my pair 1/disp.npy,",
    ]
    write_text(tmp_path / "pairs.csv", "\ufeff" + "\n".join(rows))
    samples = list(PairList(tmp_path / "pairs.csv"))
    assert [sample.name for sample in samples] == ["my pair 0", "my pair 1"]
    assert [list(sample.masks) for sample in samples] == [["nonocc"], []]
    assert (samples[0].left < samples[0].right).all()


@pytest.mark.parametrize("between", [" ", "\t", "   "])
def test_paths_with_blanks(tmp_path, between):
    folder(tmp_path)
    (tmp_path / "pair0").rename(tmp_path / "my first  pair.2")
    names = ("left.png", "right.png", "disp.npy")
    line = between.join(f"my first  pair.2/{name}" for name in names)
    write_text(
        tmp_path / "a.txt", f"{line} more columns\n{line.replace('my first  pair.2', 'pair1')}"
    )
    assert [s.name for s in PairList(tmp_path / "a.txt")] == ["my first  pair.2", "pair1"]


def test_pairs_without_truth_where_they_are_asked_for(tmp_path):
    folder(tmp_path)
    whole = "pair1/left.png pair1/right.png pair1/disp.npy"
    write_text(tmp_path / "a.txt", f"pair0/left.png pair0/right.png\n{whole}")
    rows = ("left,right,disparity", "pair0/left.png,pair0/right.png,", whole.replace(" ", ","))
    write_text(tmp_path / "a.csv", "\n".join(rows))
    write_text(tmp_path / "b.csv", "left,right\npair0/left.png,pair0/right.png")
    for name, known in (("a.txt", [0, 1]), ("a.csv", [0, 1]), ("b.csv", [0])):
        with pytest.raises(ValueError, match=r"line [12]: no disparity"):
            build_dataset("list", tmp_path / name)
        dataset = build_dataset("list", tmp_path / name, require_truth=False)
        assert [sample.valid.any() for sample in dataset] == known


@pytest.mark.parametrize("entry", [".", "..", "x" * 300, "y" * 5000, "pair0", "a\x07b.png"])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_entries_that_are_no_files_are_one_line(tmp_path, entry, suffix):
    folder(tmp_path)
    row = [entry, "pair0/right.png", "pair0/disp.npy"]
    text = " ".join(row) if suffix == ".txt" else "left,right,disparity\n" + ",".join(row)
    write_text(tmp_path / f"a{suffix}", text)
    told = rf"a\{suffix}, line [12]: .* does not exist; run in"
    with pytest.raises(FileNotFoundError, match=told) as error:
        PairList(tmp_path / f"a{suffix}")
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_truth_of_an_unknown_kind_is_not_dropped(tmp_path):
    folder(tmp_path)
    write_text(tmp_path / "pairs.txt", "pair0/left.png pair0/right.png disp.flo\n")
    with pytest.raises(FileNotFoundError, match=r"disp\.flo does not exist"):
        build_dataset("list", tmp_path / "pairs.txt", require_truth=False)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "left.png right.png", r"a\.txt, line 1: no disparity; expected 'LEFT RIGHT"),
        ("a.txt", "\n\nleft.png", r"a\.txt, line 3: no right and no disparity"),
        ("a.txt", "# nothing\n", r"a\.txt: no pairs"),
        ("a.csv", "left,right,disparity", r"a\.csv: no pairs"),
        ("a.csv", "left,right,disparity\nl.png,,d.pfm", r"a\.csv, line 2: no right"),
    ],
)
def test_wrong_lines_are_named(tmp_path, name, text, told):
    write_text(tmp_path / name, text)
    with pytest.raises(ValueError, match=told):
        PairList(tmp_path / name)


def test_a_frame_named_twice_is_refused(tmp_path):
    write_text(kitti2015(tmp_path) / "a.txt", f"{GWCNET.format(0)}\n{GWCNET.format(0)}\n")
    told = rf"line 2: {tmp_path}/training/image_2/000000_10\.png is listed"
    with pytest.raises(ValueError, match=told):
        PairList(tmp_path / "a.txt")


def test_one_name_for_two_frames_or_for_both_views_is_refused(tmp_path):
    line = GWCNET.format(0)
    write_text(kitti2015(tmp_path) / "a.txt", f"{line}\n./{line}\n")
    told = rf"line 2: {tmp_path}/training/image_2/000000_10\.png is listed"
    with pytest.raises(ValueError, match=told):
        PairList(tmp_path / "a.txt")
    write_text(tmp_path / "b.txt", line.replace("image_3", "image_2"))
    with pytest.raises(ValueError, match=r"line 1: .* is both left and right"):
        PairList(tmp_path / "b.txt")


def test_missing_files_are_named(tmp_path):
    write_text(kitti2015(tmp_path) / "a.txt", f"{GWCNET.format(0)}\n{GWCNET.format(7)}\n")
    told = r"line 2: .*000007_10\.png does not exist; run in the folder .* base="
    with pytest.raises(FileNotFoundError, match=told):
        PairList(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"b\.txt: no such file"):
        PairList(tmp_path / "b.txt")
