"""CREStereo, Falling Things, InStereo2K, Virtual KITTI 2 and TartanAir: parts, units, limits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_trees import (
    SIZE,
    crestereo,
    falling_things,
    instereo2k,
    tartanair,
    tartanair_v2,
    virtual_kitti,
    write_png,
)

from ea_psmnet.datasets.builder import build_dataset, detect_dataset
from ea_psmnet.datasets.crestereo import CreStereo
from ea_psmnet.datasets.falling_things import FallingThings
from ea_psmnet.datasets.instereo2k import InStereo2k
from ea_psmnet.datasets.kitti import VirtualKitti
from ea_psmnet.datasets.tartanair import TartanAir, TartanAirV2
from ea_psmnet.files import write_npy, write_text


def test_any_part_of_crestereo_will_do(tmp_path):
    crestereo(tmp_path / "CREStereo", order=(0,))
    dataset = CreStereo(tmp_path)
    assert dataset.parts == {"hole": 1}
    with pytest.raises(
        FileNotFoundError, match="elsewhere: no tree or shapenet or reflective or hole folder"
    ):
        CreStereo(tmp_path / "elsewhere")


def test_variants_of_falling_things(tmp_path):
    falling_things(tmp_path / "fat")
    assert FallingThings(tmp_path).parts == {"single": 1, "mixed": 1}
    assert build_dataset("falling-things", tmp_path, variant="mixed").parts == {"mixed": 1}
    falling_things(tmp_path / "one", order=(0,))
    with pytest.raises(FileNotFoundError, match="one: no mixed folder; understood as Falling"):
        FallingThings(tmp_path / "one", variant="mixed")


@pytest.mark.parametrize(
    "content", ["{}", "not JSON", '{"camera_settings": []}', "null", "[" * 100_000]
)
def test_a_damaged_camera_file_is_named(tmp_path, content):
    falling_things(tmp_path, order=(1,))
    path = tmp_path / "mixed/kitchen_0/_camera_settings.json"
    write_text(path, content)
    with pytest.raises(ValueError, match=r"_camera_settings\.json: contains no focal length"):
        FallingThings(tmp_path)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"_camera_settings\.json: no such file"):
        FallingThings(tmp_path)[0]


@pytest.mark.parametrize("number", ["NaN", "-700", "0", "1e999"])
def test_an_impossible_focal_length_is_told(tmp_path, number):
    falling_things(tmp_path, order=(1,))
    path = tmp_path / "mixed/kitchen_0/_camera_settings.json"
    write_text(path, path.read_text().replace("768.2", number))
    with pytest.raises(ValueError, match=r"_camera_settings\.json: focal length"):
        FallingThings(tmp_path)[0]


@pytest.mark.parametrize(
    ("write", "reader", "stem"),
    [
        (falling_things, FallingThings, "single/002_master_chef_can_16k/kitchen_0/000003.left"),
        (virtual_kitti, VirtualKitti, "Scene01/clone/frames/depth/Camera_0/depth_00002"),
    ],
)
def test_depth_beyond_the_format_is_unknown(tmp_path, write, reader, stem):
    root = write(tmp_path)
    name = f"{stem}.depth.png" if write is falling_things else f"{stem}.png"
    depth = np.full(SIZE, 65535)
    depth[0, :2] = 0, 65534
    write_png(root / name, depth)
    sample = reader(root)[0]
    assert np.argwhere(sample.valid).tolist() == [[0, 1]]
    expected = 768.2 * 600 if write is falling_things else 725.0087 * 53.2725
    assert sample.disparity[0, 1] == pytest.approx(expected / 65534)


@pytest.mark.parametrize("write", [crestereo, falling_things, instereo2k, virtual_kitti])
def test_converted_truth_is_refused(tmp_path, write):
    dataset = build_dataset("auto", write(tmp_path))
    path = dataset.frames[0].disparity
    for values, dtype in ((np.ones(SIZE), np.uint8), (np.ones((*SIZE, 3)), np.uint16)):
        write_png(path, values, dtype)
        with pytest.raises(ValueError, match=r"expected one channel of 16 bits") as error:
            dataset[0]
        assert str(path) in str(error.value)


def test_splits_of_instereo2k(tmp_path):
    instereo2k(tmp_path / "InStereo2K")
    assert detect_dataset(tmp_path) == "instereo2k"
    names = [f.name for f in InStereo2k(tmp_path, split="test").frames]
    assert names == ["test/000005", "test/000006"]
    with pytest.raises(ValueError, match="unknown split 'val': choose from train, test"):
        InStereo2k(tmp_path, split="val")


def test_archives_of_virtual_kitti_unpacked_apart(tmp_path):
    virtual_kitti(tmp_path / "vkitti_2.0.3_rgb")
    depth = tmp_path / "vkitti_2.0.3_depth"
    for path in sorted(tmp_path.glob("vkitti_2.0.3_rgb/*/*/frames/depth")):
        below = depth / path.relative_to(tmp_path / "vkitti_2.0.3_rgb")
        below.parent.mkdir(parents=True)
        path.rename(below)
    assert detect_dataset(tmp_path) == "virtual-kitti"
    dataset = VirtualKitti(tmp_path)
    assert [f.name for f in dataset.frames] == ["Scene01/clone/00002", "Scene01/fog/00002"]
    assert dataset.has_right_truth


@pytest.mark.parametrize("place", ["hospital/Easy", "TartanAir/hospital/Easy"])
def test_places_of_tartanair_at_any_depth(tmp_path, place):
    tartanair(tmp_path / "all", order=(0,))
    (tmp_path / "root" / place).parent.mkdir(parents=True)
    (tmp_path / "all/hospital/hospital/Easy").rename(tmp_path / "root" / place)
    assert detect_dataset(tmp_path / "root") == "tartanair"
    assert [f.name for f in TartanAir(tmp_path / "root").frames] == [f"{place}/P000/000001"]


def test_depth_of_tartanair(tmp_path):
    tartanair(tmp_path, order=(0,))
    flight = tmp_path / "hospital/hospital/Easy/P000"
    depth = np.array([[80, 10000, np.inf, 0, -1, np.nan]] * SIZE[0], np.float32)
    write_npy(flight / "depth_left/000001_left_depth.npy", depth)
    sample = TartanAir(tmp_path)[0]
    assert sample.valid[0].tolist() == [True, True, True, False, False, False]
    assert sample.disparity[0, :3] == pytest.approx([1, 0.008, 0])


def test_tartanair_v2_depth_that_is_no_packed_float_is_told(tmp_path):
    path = tartanair_v2(tmp_path) / "CarWelding/Data_easy/P000/depth_lcam_front"
    write_png(path / "000001_lcam_front_depth.png", np.ones(SIZE))
    with pytest.raises(ValueError, match=r"depth\.png: uint16 \(4, 6\), expected four channels"):
        TartanAirV2(tmp_path)[0]


def test_cameras_of_tartanair_v2_to_the_side_are_left_alone(tmp_path):
    flight = tartanair_v2(tmp_path) / "CarWelding/Data_easy/P000"
    for kind in ("image", "depth"):
        shutil.copytree(flight / f"{kind}_lcam_front", flight / f"{kind}_lcam_left")
    assert len(TartanAirV2(tmp_path)) == 2
