"""Scene Flow: the same frames come out of each of the four trees that people keep it in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.sceneflow import PUBLISHED_COUNTS, SceneFlow
from ea_psmnet.files import write_image, write_pfm, write_text

SIZE = (4, 6)
# Part, folder of the scene below the part's own, number. The scenes called `left` are a trap.
TRAIN = [
    ("FlyingThings3D", "TRAIN/A/0000", "0006"),
    ("FlyingThings3D", "TRAIN/B/0007", "0010"),
    ("FlyingThings3D", "TRAIN/C/0001", "0006"),
    ("Monkaa", "a_rain_of_stones_x2", "0000"),
    ("Driving", "15mm_focallength/scene_forwards/fast", "0001"),
]
TEST = [("FlyingThings3D", "TEST/A/0149", "0015"), ("FlyingThings3D", "TEST/B/0000", "0006")]
NAMES = ["/".join((part, scene, "left", number)) for part, scene, number in TRAIN]
TEST_NAMES = ["/".join((part, scene, "left", number)) for part, scene, number in TEST]

FOLDERS = {
    "A": {part: (f"{part}/{{}}", f"{part}/disparity") for part in ("FlyingThings3D", "Monkaa")}
    | {"Driving": ("driving/{}", "driving/disparity")},
    "A in one folder": dict.fromkeys(("FlyingThings3D", "Monkaa", "Driving"), ("{}", "disparity")),
    "B": {
        "FlyingThings3D": ("{}", "frames_disparity"),
        "Monkaa": ("monkaa_{}", "monkaa_disparity"),
        "Driving": ("driving_{}", "driving_disparity"),
    },
    "B as archived": {
        part: (f"{part.lower()}__{{}}", f"{part.lower()}__disparity")
        for part in ("FlyingThings3D", "Monkaa", "Driving")
    },
    "B with flying": {
        "FlyingThings3D": ("flying_{}", "flying_disparity"),
        "Monkaa": ("monkaa_{}", "monkaa_disparity"),
        "Driving": ("driving_{}", "driving_disparity"),
    },
    "C": {
        "FlyingThings3D": ("{}", "disparity"),
        "Monkaa": ("{}/TRAIN", "disparity/TRAIN"),
        "Driving": ("{}/TRAIN", "disparity/TRAIN"),
    },
}
"""Folders of a part's images and of its disparities, for each layout."""


def write_frame(images: Path, truth: Path, number: str, shade: int, suffix: str = ".png") -> None:
    """Left `shade`, right `shade` + 1; disparity `shade`, of the right view a half more."""
    for view, brighter in (("left", 0), ("right", 1)):
        pixels = np.full((*SIZE, 3), shade + brighter, np.uint8)
        write_image(images / view / f"{number}{suffix}", pixels)
        write_pfm(truth / view / f"{number}.pfm", np.full(SIZE, shade + brighter / 2, np.float32))


def write_tree(root: Path, layout: str, frames=(*TRAIN, *TEST), suffix: str = ".png") -> Path:
    for part, scene, number in frames:
        images, truth = FOLDERS[layout][part]
        shade = 10 * ((*TRAIN, *TEST).index((part, scene, number)) + 1)
        for render_pass, brighter in (("clean", 0), ("final", 100)):
            folder = root / images.format(f"frames_{render_pass}pass") / scene
            write_frame(folder, root / truth / scene, number, shade + brighter, suffix)
        for view, more in (("left", 0), ("right", 0.5)):
            path = root / truth / scene / view / f"{number}.pfm"
            write_pfm(path, np.full(SIZE, shade + more, np.float32))
    return root


def write_subset(root: Path, numbers=("0000000", "0000002")) -> Path:
    """Layout D, whose left disparity is negative; the pixel (0, 0) has the wrong sign."""
    for shade, number in enumerate(numbers, 1):
        for split in ("train", "val"):
            base = root / split
            write_frame(base / "image_clean", base / "disparity", number, 10 * shade)
            for view, sign in (("left", -1), ("right", 1)):
                truth = np.full(SIZE, sign * 10 * shade, np.float32)
                truth[0, 0], truth[0, 1] = -truth[0, 0], np.nan
                write_pfm(base / f"disparity/{view}/{number}.pfm", truth)
                hidden = np.zeros((*SIZE, 3), np.uint8)
                hidden[1 if view == "left" else 2, 1] = 255
                write_image(base / f"disparity_occlusions/{view}/{number}.png", hidden)
    return root


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("above", [".", "SceneFlow", "sceneflow"])
def test_every_layout_gives_the_same_frames(tmp_path, layout, above):
    write_tree(tmp_path / above, layout, (*TRAIN, *TEST)[::-1])
    dataset = SceneFlow(tmp_path)
    assert [frame.name for frame in dataset.frames] == NAMES
    for place, sample in enumerate(dataset, 1):
        assert (sample.left == 10 * place).all()
        assert (sample.right == 10 * place + 1).all()
        assert (sample.disparity == 10 * place).all()
        assert sample.valid.all()
    assert [frame.name for frame in SceneFlow(tmp_path, split="test").frames] == TEST_NAMES
    assert detect_dataset(tmp_path) == "sceneflow"


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("part", ["FlyingThings3D", "Monkaa", "Driving"])
def test_one_part_will_do_in_every_layout(tmp_path, layout, part):
    frames = [frame for frame in TRAIN if frame[0] == part]
    dataset = SceneFlow(write_tree(tmp_path, layout, frames))
    assert [f.name for f in dataset.frames] == [name for name in NAMES if name.startswith(part)]


@pytest.mark.parametrize("part", ["FlyingThings3D", "Monkaa", "Driving"])
def test_the_root_may_be_one_parts_folder(tmp_path, part):
    write_tree(tmp_path, "A", TRAIN)
    dataset = SceneFlow(tmp_path / ("driving" if part == "Driving" else part))
    assert [f.name for f in dataset.frames] == [name for name in NAMES if name.startswith(part)]


@pytest.mark.parametrize("layout", FOLDERS)
def test_passes(tmp_path, layout):
    root = write_tree(tmp_path, layout)
    final = SceneFlow(root, render_pass="final")
    assert [f.name for f in final.frames] == NAMES
    assert (final[0].left == 110).all()
    assert (final[0].disparity == 10).all()
    both = SceneFlow(root, render_pass="both")
    assert [f.name for f in both.frames] == [
        f"{kind}/{name}" for kind in ("clean", "final") for name in NAMES
    ]
    assert [int(sample.left[0, 0, 0]) for sample in both][::5] == [10, 110]
    assert len(build_dataset("sceneflow", root, split="test", render_pass="final")) == len(TEST)


@pytest.mark.parametrize("layout", FOLDERS)
def test_the_right_view_as_the_reference(tmp_path, layout):
    dataset = SceneFlow(write_tree(tmp_path, layout), view="right")
    assert [f.name for f in dataset.frames] == [name.replace("left", "right") for name in NAMES]
    assert dataset.has_right_truth
    sample = dataset[1]
    assert (sample.left == 21).all()
    assert (sample.right == 20).all()
    assert (sample.disparity == 20.5).all()
    assert (dataset.mirrored(1).left == 20).all()
    assert (dataset.mirrored(1).disparity == 20).all()


def test_the_right_view_is_flipped(tmp_path):
    root = write_tree(tmp_path, "A", TRAIN[3:4])
    images = root / "Monkaa/frames_cleanpass" / TRAIN[3][1]
    truth = root / "Monkaa/disparity" / TRAIN[3][1]
    ramp = np.broadcast_to(np.arange(6, dtype=np.uint8)[None, :, None], (4, 6, 3))
    write_image(images / "right/0000.png", np.ascontiguousarray(ramp))
    write_pfm(truth / "right/0000.pfm", ramp[..., 0].astype(np.float32))
    sample = SceneFlow(root, view="right")[0]
    assert (sample.left == ramp[:, ::-1]).all()
    assert (sample.disparity == ramp[:, ::-1, 0]).all()


def test_a_right_view_without_truth_is_told(tmp_path):
    root = write_tree(tmp_path, "A", TRAIN[3:4])
    path = root / "Monkaa/disparity" / TRAIN[3][1] / "right/0000.pfm"
    path.unlink()
    assert not SceneFlow(root).has_right_truth
    with pytest.raises(ValueError, match=r"Monkaa/.*no ground truth with this view"):
        SceneFlow(root).mirrored(0)
    with pytest.raises(FileNotFoundError) as error:
        SceneFlow(root, view="right")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("layout", ["A", "C"])
def test_webp_folders_as_unpacked(tmp_path, layout):
    root = write_tree(tmp_path, layout, suffix=".webp")
    for folder in sorted(root.glob("**/frames_cleanpass")):
        folder.rename(folder.with_name("frames_cleanpass_webp"))
    dataset = SceneFlow(root)
    assert [f.name for f in dataset.frames] == NAMES
    assert dataset.frames[0].left.suffix == ".webp"
    assert np.abs(dataset[-1].left.astype(int) - 10 * len(TRAIN)).max() <= 2


def test_of_two_formats_the_lossless_is_read(tmp_path):
    for suffix in (".webp", ".png"):
        write_tree(tmp_path, "A", TRAIN[3:4], suffix)
    assert [f.left.suffix for f in SceneFlow(tmp_path).frames] == [".png"]


def test_a_root_named_left_is_left_alone(tmp_path):
    sample = SceneFlow(write_tree(tmp_path / "left_right" / "left", "A"))[0]
    assert (sample.right == sample.left + 1).all()


def test_foreign_files_are_ignored(tmp_path):
    root = write_tree(tmp_path, "A", TRAIN)
    for name in ("._0000.png", "Thumbs.db"):
        (root / "Monkaa/frames_cleanpass" / TRAIN[3][1] / "left" / name).touch()
    assert len(SceneFlow(root)) == len(TRAIN)


def test_truth_without_images_is_no_frame(tmp_path):
    root = write_tree(tmp_path, "A")
    part, scene, number = TRAIN[1]
    for view in ("left", "right"):
        (root / part / "frames_cleanpass" / scene / view / f"{number}.png").unlink()
    assert [f.name for f in SceneFlow(root).frames] == [NAMES[0], *NAMES[2:]]


def test_a_wrong_negative_disparity_stays_unknown(tmp_path):
    root = write_tree(tmp_path, "A")
    part, scene, number = TRAIN[0]
    truth = np.full(SIZE, 3, np.float32)
    truth[0, 0], truth[1, 1] = -3, np.nan
    write_pfm(root / part / "disparity" / scene / f"left/{number}.pfm", truth)
    sample = SceneFlow(root)[0]
    assert (~sample.valid).sum() == 2
    assert sample.disparity[0, 0] == sample.disparity[1, 1] == 0


@pytest.mark.parametrize("place", ["disparity", "right"])
def test_a_wrong_size_names_the_file(tmp_path, place):
    root = write_tree(tmp_path, "A")
    part, scene, number = TRAIN[0]
    if place == "disparity":
        path = root / part / "disparity" / scene / f"left/{number}.pfm"
        write_pfm(path, np.ones((3, 5), np.float32))
    else:
        path = root / part / "frames_cleanpass" / scene / f"right/{number}.png"
        write_image(path, np.zeros((3, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"5x3 pixels.*6x4") as error:
        SceneFlow(root)[0]
    assert str(path) in str(error.value)


def test_choices_are_checked(tmp_path):
    write_tree(tmp_path, "A")
    with pytest.raises(ValueError, match="unknown split 'val': choose from train, test"):
        SceneFlow(tmp_path, split="val")
    with pytest.raises(ValueError, match="choose from clean, final, both"):
        SceneFlow(tmp_path, render_pass="cleanpass")


def test_slices_and_negative_indices(tmp_path):
    dataset = SceneFlow(write_tree(tmp_path, "A"))
    assert [sample.name for sample in dataset[1:3]] == NAMES[1:3]
    assert dataset[-1].name == NAMES[-1]
    with pytest.raises(IndexError):
        dataset[len(TRAIN)]


@pytest.mark.parametrize("view", ["left", "right"])
def test_subset_signs(tmp_path, view):
    root = write_subset(tmp_path / "FlyingThings3D_subset")
    dataset = SceneFlow(tmp_path, view=view)
    assert [f.name for f in dataset.frames] == [
        f"FlyingThings3D_subset/train/{view}/{number}" for number in ("0000000", "0000002")
    ]
    sample = dataset[1]
    wrong = np.s_[0, :2] if view == "left" else np.s_[0, 4:]  # the right view is flipped
    expected = np.ones(SIZE, bool)
    expected[wrong] = False
    assert (sample.valid == expected).all()
    assert (sample.disparity[sample.valid] == 20).all()
    hidden = np.argwhere(~sample.masks["nonocc"]).tolist()
    assert hidden == ([[1, 1]] if view == "left" else [[2, 4]])
    test = SceneFlow(root, split="test", view=view)
    assert [f.left.relative_to(root).parts[0] for f in test.frames] == ["val"] * 2


def test_subset_of_the_wrong_sign_throughout_is_an_error(tmp_path):
    root = write_subset(tmp_path)
    path = root / "train/disparity/left/0000000.pfm"
    for content in (np.full(SIZE, 3, np.float32), np.eye(*SIZE, dtype=np.float32)):
        write_pfm(path, content)
        with pytest.raises(ValueError, match=r"0000000\.pfm: positive disparity"):
            SceneFlow(root)[0]


def test_the_subset_beside_the_other_parts(tmp_path):
    write_subset(tmp_path / "FlyingThings3D_subset", ("0000000",))
    write_tree(tmp_path, "A", TRAIN[3:])
    names = [f.name for f in SceneFlow(tmp_path).frames]
    assert names == ["FlyingThings3D_subset/train/left/0000000", *NAMES[3:]]
    write_tree(tmp_path, "A", TRAIN[:3])  # the full set has the same frames
    assert [f.name for f in SceneFlow(tmp_path).frames] == NAMES


def test_the_subset_in_a_folder_called_as_the_full_set(tmp_path):
    write_subset(tmp_path / "FlyingThings3D", ("0000000",))
    names = [f.name for f in SceneFlow(tmp_path).frames]
    assert names == ["FlyingThings3D_subset/train/left/0000000"]


@pytest.mark.parametrize("layout", ["A", "B"])
def test_a_part_without_the_split_is_an_error(tmp_path, layout):
    root = write_tree(tmp_path, layout, (*TEST, TRAIN[3]))
    with pytest.raises(FileNotFoundError, match="frames_cleanpass/TRAIN: no such folder"):
        SceneFlow(root)
    with pytest.raises(FileNotFoundError, match=r"train split alone .*: choose split train"):
        SceneFlow(write_tree(tmp_path / "monkaa", layout, TRAIN[3:]), split="test")


def test_no_frames_and_no_folder_are_errors(tmp_path):
    (tmp_path / "Monkaa/frames_cleanpass").mkdir(parents=True)
    (tmp_path / "Monkaa/disparity").mkdir()
    with pytest.raises(FileNotFoundError, match="frames_cleanpass: no images called"):
        SceneFlow(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no part"):
        SceneFlow(tmp_path / "nowhere")


@pytest.mark.parametrize("above", [".", "SceneFlow"])
@pytest.mark.parametrize("name", ["things_frames_cleanpass", "Frames_FinalPass_old"])
def test_a_folder_of_images_that_is_of_no_part_is_told(tmp_path, above, name):
    """A full download would be trained on without it."""
    write_tree(tmp_path / above, "B", TRAIN[3:])
    (tmp_path / above / name / "TRAIN").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"{name}: images that belong to no known part;"):
        SceneFlow(tmp_path)
    assert detect_dataset(tmp_path) == "sceneflow"


def test_the_same_images_in_two_formats_are_no_unknown_part(tmp_path):
    root = write_tree(tmp_path, "B")
    for folder in sorted(root.glob("*frames_cleanpass")):
        shutil.copytree(folder, folder.with_name(f"{folder.name}_webp"))
    assert [f.name for f in SceneFlow(root).frames] == NAMES


def test_pairs_in_a_folder_called_as_a_part_are_no_scene_flow(tmp_path):
    for name in ("driving", "other"):
        for view in ("left", "right"):
            write_image(tmp_path / name / f"{view}.png", np.zeros((*SIZE, 3), np.uint8))
        write_pfm(tmp_path / name / "disp.pfm", np.ones(SIZE, np.float32))
    assert [sample.name for sample in build_dataset("auto", tmp_path)] == ["driving", "other"]


def test_masks_are_optional(tmp_path):
    root = write_subset(tmp_path, ("0000000",))
    for path in root.glob("train/disparity_occlusions/*/*.png"):
        path.unlink()
    assert dict(SceneFlow(root)[0].masks) == {}


@pytest.mark.parametrize(
    ("layout", "told"), [("A", "as released"), ("B", "PSMNet's"), ("C", "the merged layout")]
)
def test_errors_tell_path_and_layout(tmp_path, layout, told):
    root = write_tree(tmp_path, layout)
    part, scene, _ = TRAIN[3]
    images, truth = (root / folder for folder in FOLDERS[layout][part])
    clean = Path(str(images).format("frames_cleanpass"))
    for path in (*(clean / scene).glob("*/0000.png"), truth / scene / "left/0000.pfm"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError) as error:
            SceneFlow(root)
        assert str(path).removesuffix(".png") in str(error.value)
        assert f"understood as {told}" in str(error.value).replace("Scene Flow ", "")
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("layout", "told"), [("A", "Scene Flow as released"), ("B", "PSMNet's"), ("C", "the merged")]
)
def test_damaged_files_are_told_with_path_and_layout(tmp_path, layout, told):
    root = write_tree(tmp_path, layout)
    dataset = SceneFlow(root)
    for path in (dataset.frames[0].left, dataset.frames[1].disparity):
        path.write_bytes(path.read_bytes()[:-5])
    for index, name in enumerate((r"left/0006\.png: damaged", r"left/0010\.pfm: .*damaged")):
        with pytest.raises(ValueError, match=rf"{name}.*; understood as {told}"):
            dataset[index]
    dataset.frames[2].right.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no such file; understood as {told}"):
        dataset[2]


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_part_without_the_pass_is_an_error(tmp_path, layout):
    root = write_tree(tmp_path, layout, TRAIN)
    for folder in root.glob("**/*frames_finalpass"):
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"frames_finalpass.*: no such folder; understood"):
        SceneFlow(root, render_pass="final")


@pytest.mark.parametrize("layout", FOLDERS)
def test_frames_to_leave_out(tmp_path, layout):
    lines = [
        "TRAIN/A/0000/left/0006.png",
        "TRAIN/B/0007/right/0010.webp",  # the authors list both views
        "FlyingThings3D/TRAIN/C/0001/left/0006.png",
        "a_rain_of_stones_x2/left/0000.png",
        "",
        "TEST/A/0149/left/0015.png",
    ]
    write_text(tmp_path / "unused.txt", "\n".join(lines))
    root = write_tree(tmp_path / "data", layout)
    train = SceneFlow(root, exclude=tmp_path / "unused.txt")
    assert [f.name for f in train.frames] == NAMES[4:]
    test = build_dataset("sceneflow", root, split="test", exclude=tmp_path / "unused.txt")
    assert [f.name for f in test.frames] == TEST_NAMES[1:]


@pytest.mark.parametrize(
    "head", ["\ufeff", "./", "frames_cleanpass/", "C:\\data\\frames_finalpass\\", "/data/"]
)
def test_frames_to_leave_out_may_have_any_path_before_the_split(tmp_path, head):
    root = write_tree(tmp_path / "data", "A")
    write_text(tmp_path / "unused.txt", f"{head}TRAIN/A/0000/left/0006.png\r\n")
    assert len(SceneFlow(root, exclude=tmp_path / "unused.txt")) == len(SceneFlow(root)) - 1


@pytest.mark.parametrize("line", ["0006.png", "TRAIN/A/0000/0006.png", "left/0006.png"])
def test_a_list_of_another_form_is_refused(tmp_path, line):
    write_tree(tmp_path, "A", TRAIN[3:4])
    write_text(tmp_path / "unused.txt", f"TRAIN/A/0000/left/0006.png\n{line}\n")
    with pytest.raises(
        ValueError, match=rf"unused\.txt, line 2: '{line}'; expected a frame such as"
    ):
        SceneFlow(tmp_path, exclude=tmp_path / "unused.txt")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        SceneFlow(tmp_path, exclude=tmp_path / "none.txt")
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"photo\.txt: not a list of frames, not UTF-8"):
        SceneFlow(tmp_path, exclude=tmp_path / "photo.txt")


@pytest.mark.parametrize("layout", FOLDERS)
def test_parts_are_counted_under_the_published_names(tmp_path, layout):
    root = write_tree(tmp_path, layout)
    parts = SceneFlow(root).parts | SceneFlow(root, split="test").parts
    assert list(parts) == list(PUBLISHED_COUNTS)
    assert list(parts.values()) == [1, 1, 1, 1, 1, 2]
    train = sum(count for part, count in PUBLISHED_COUNTS.items() if "TEST" not in part)
    assert (train, PUBLISHED_COUNTS["FlyingThings3D/TEST"]) == (35454, 4370)
