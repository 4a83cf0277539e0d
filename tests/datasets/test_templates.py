"""Finding and matching files by templates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ea_psmnet.datasets.templates import Files, home, matched


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_fields_are_read_off_the_path_below_the_folder(tmp_path):
    root = tmp_path / "left" / "0000"
    touch(root, "A/left/left/1.png", "A/left/2.PNG", "A/left/3.jpg", "A/right/1.png", "left/4.png")
    found = Files(root, "{scene}/left/{frame}").find()
    assert found.keys() == {("A/left", "1"), ("A", "2")}
    assert all(path.is_file() for path in found.values())


def test_a_frame_is_one_name_and_no_folder(tmp_path):
    touch(tmp_path, "1_10.png", "1_11.png", "a/2_10.png")
    assert Files(tmp_path, "{frame}_10").find().keys() == {("1",)}
    assert Files(tmp_path, "{scene}_10").find().keys() == {("1",), ("a/2",)}


def test_literals_are_literal(tmp_path):
    touch(tmp_path, "1.left.jpg", "2xleft.jpg")
    assert Files(tmp_path, "{frame}.left", (".jpg",)).find().keys() == {("1",)}


def test_a_folder_that_cannot_be_read_is_told_and_not_called_empty(tmp_path, monkeypatch):
    touch(tmp_path, "A/1.png", "B/1.png")
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "B":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(OSError, match=r"/B: cannot be read \(Permission denied\)"):
        Files(tmp_path, "{scene}/{frame}").find()
    assert Files(tmp_path / "nowhere", "{scene}/{frame}").find() == {}


def test_hidden_files_are_no_frames(tmp_path):
    touch(tmp_path, "._1.png", "1.png")
    assert Files(tmp_path, "{frame}").find().keys() == {("1",)}


def test_only_the_folders_named(tmp_path):
    touch(tmp_path, "A/1.png", "B/1.png", "C/1.png")
    files = Files(tmp_path, "{scene}/{frame}", within=("C", "A", "none"))
    assert files.find().keys() == {("A", "1"), ("C", "1")}


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/A").symlink_to(tmp_path / "elsewhere")
    assert Files(tmp_path / "data", "{scene}/{frame}").find().keys() == {("A", "1")}


@pytest.mark.parametrize(("link", "target"), [("A/same", "."), ("A/up", "..")])
def test_links_to_folders_above_are_not_followed(tmp_path, link, target):
    touch(tmp_path, "data/A/1.png")
    (tmp_path / "data" / link).symlink_to(target)
    (tmp_path / "linked").symlink_to("data")
    for top in ("data", "linked"):
        assert Files(tmp_path / top, "{scene}/{frame}").find().keys() == {("A", "1")}


def test_nothing_there(tmp_path):
    files = Files(tmp_path / "none", "{frame}")
    assert files.find() == {}
    assert not files.exist()
    touch(tmp_path, "none/1.png")
    assert files.exist()


def test_every_image_needs_its_partner_and_truth(tmp_path):
    kinds = [Files(tmp_path / name, "{frame}") for name in ("left", "right", "truth")]
    touch(tmp_path, "left/2.png", "right/2.png", "truth/2.png", "truth/3.png")
    assert [key for key, *_ in matched(*kinds, "layout")] == [("2",)]
    touch(tmp_path, "right/1.png")
    with pytest.raises(FileNotFoundError, match=r"left/1\.png: missing, .*; layout"):
        list(matched(*kinds, "layout"))


def test_home_is_the_first_that_has_a_marker(tmp_path):
    assert home(tmp_path, ("a", "b"), "x", "y") == tmp_path
    touch(tmp_path, "b/y/1.png")
    assert home(tmp_path, ("a", "b"), "x", "y") == tmp_path / "b"
    touch(tmp_path, "x/1.png")
    assert home(tmp_path, ("a", "b"), "x", "y") == tmp_path
