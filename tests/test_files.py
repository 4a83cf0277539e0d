"""Files: what is read is what was stored; what is written is whole or not there."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ea_psmnet import files


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def grid() -> NDArray[np.float32]:
    return np.arange(6, dtype=np.float32).reshape(2, 3) + 0.5


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Images


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".bmp", ".tiff", ".PNG"])
def test_lossless_images_come_back_exactly(tmp_path, rgb, suffix):
    path = tmp_path / "new" / "folder" / f"image{suffix}"
    files.write_image(path, rgb)
    assert np.array_equal(files.read_image(path), rgb)
    assert leftovers(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_images_keep_size_and_channel_order(tmp_path, suffix):
    red = np.full((8, 12, 3), (250, 10, 20), np.uint8)
    files.write_image(tmp_path / f"red{suffix}", red)
    read = files.read_image(tmp_path / f"red{suffix}")
    assert read.shape == red.shape
    assert np.abs(read.astype(int) - red).max() < 10


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_become_rgb(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    image.save(tmp_path / "image.png")
    assert np.array_equal(files.read_image(tmp_path / "image.png"), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_blended(tmp_path, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    image.putalpha(Image.fromarray(rgb[..., 0]))
    image.save(tmp_path / "image.png")
    opaque = image.convert(mode[:-1]).convert("RGB")
    assert np.array_equal(files.read_image(tmp_path / "image.png"), opaque)


def test_16_bits_are_rounded_to_8(tmp_path):
    deep = np.array([[0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = files.read_image(tmp_path / "deep.png")
    assert read[0].tolist() == [[v] * 3 for v in (0, 0, 1, 100, 101, 255)]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_exif_orientation_is_applied(tmp_path, rgb, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(rgb).save(tmp_path / f"plain.{suffix}")
    Image.fromarray(rgb).save(tmp_path / f"turned.{suffix}", exif=exif)
    plain, turned = (
        files.read_image(tmp_path / f"{name}.{suffix}") for name in ("plain", "turned")
    )
    assert np.array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "ppm"])
def test_a_damaged_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    files.write_image(path, np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"image\.{suffix}: damaged"):
        files.read_image(path)


def test_missing_empty_and_folder_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        files.read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"empty\.png: .*0 bytes"):
        files.read_image(tmp_path / "empty.png")
    with pytest.raises(OSError, match="cannot be read"):
        files.read_image(tmp_path)


def test_write_image_checks_suffix_and_array(tmp_path, rgb):
    with pytest.raises(ValueError, match=r"image\.xyz.*\.png"):
        files.write_image(tmp_path / "image.xyz", rgb)
    with pytest.raises(ValueError, match="float32"):
        files.write_image(tmp_path / "image.png", rgb.astype(np.float32))
    assert leftovers(tmp_path) == []


# PFM


@pytest.mark.parametrize(("order", "scale"), [("<", "-1.0"), (">", "1.0"), ("<", "-0.003922")])
def test_pfm_is_bottom_up_in_either_byte_order_and_unscaled(tmp_path, order, scale):
    bottom_first = struct.pack(f"{order}6f", 3.5, 4.5, 5.5, 0.5, 1.5, 2.5)
    (tmp_path / "map.pfm").write_bytes(f"Pf\n3 2\n{scale}\n".encode() + bottom_first)
    read = files.read_pfm(tmp_path / "map.pfm")
    assert read.dtype == np.float32
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert np.array_equal(read, grid())


def test_written_pfm_has_the_documented_bytes(tmp_path):
    files.write_pfm(tmp_path / "map.pfm", grid())
    expected = b"Pf\n3 2\n-1.0\n" + struct.pack("<6f", 3.5, 4.5, 5.5, 0.5, 1.5, 2.5)
    assert (tmp_path / "map.pfm").read_bytes() == expected


def test_an_image_too_large_for_its_format_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"x\.webp: not written, 20 x 16400 pixels are too large"):
        files.write_image(tmp_path / "x.webp", np.zeros((16400, 20, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_pfm_keeps_infinity_and_nan(tmp_path):
    wild = np.array([[np.inf, np.nan, -3.0]], np.float32)
    files.write_pfm(tmp_path / "map.pfm", wild)
    assert np.array_equal(files.read_pfm(tmp_path / "map.pfm"), wild, equal_nan=True)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("window", [np.s_[0:2, 1:3], np.s_[3:5, 0:7], np.s_[1:4, 2:6]])
def test_a_part_of_a_pfm_is_what_the_whole_has_there(tmp_path, order, window):
    whole = np.random.default_rng(0).random((5, 7), np.float32)
    header = f"Pf\n7 5\n{'-1' if order == '<' else '1'}\n".encode()
    (tmp_path / "map.pfm").write_bytes(header + whole[::-1].astype(f"{order}f4").tobytes())
    part = files.read_pfm(tmp_path / "map.pfm", window)
    assert np.array_equal(part, whole[window])
    assert type(part) is np.ndarray
    assert part.flags.c_contiguous
    assert part.flags.writeable
    assert part.dtype.isnative


@pytest.mark.parametrize("change", [-1, -24, 4])
def test_pfm_of_wrong_length_tells_both(tmp_path, change):
    body = (struct.pack("<6f", *range(6)) + b"\0" * 4)[: 24 + change]
    (tmp_path / "map.pfm").write_bytes(b"Pf\n3 2\n-1\n" + body)
    with pytest.raises(ValueError, match=rf"map\.pfm: 3x2 .* 24 bytes .* has {24 + change}"):
        files.read_pfm(tmp_path / "map.pfm")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no PFM header"),
        (b"P5\n1 1\n255\n0", "no PFM header"),
        (b"Pf\n1 1\n0.0\n" + b"\0" * 4, "scale '0.0'"),
        (b"Pf\n1 1\n--\n" + b"\0" * 4, "scale '--'"),
        (b"Pf\n0 4\n-1\n", "damaged"),
        (b"PF\n1 1\n-1\n" + b"\0" * 12, "colour PFM"),
    ],
)
def test_pfm_malformed(tmp_path, data, reason):
    (tmp_path / "map.pfm").write_bytes(data)
    with pytest.raises(ValueError, match=rf"map\.pfm: .*{reason}"):
        files.read_pfm(tmp_path / "map.pfm")


# Disparity


@pytest.mark.parametrize("suffix", [".pfm", ".npy"])
def test_unknown_and_negative_disparities_are_invalid(tmp_path, suffix):
    stored = np.array([[0.0, 1.5, -2.0], [np.nan, np.inf, -np.inf]], np.float32)
    write = files.write_pfm if suffix == ".pfm" else files.write_npy
    write(tmp_path / f"map{suffix}", stored)
    disparity, valid = files.read_disparity(tmp_path / f"map{suffix}")
    assert valid.tolist() == [[True, True, False], [False, False, False]]
    assert disparity.tolist() == [[0.0, 1.5, 0.0], [0.0, 0.0, 0.0]]
    assert (disparity.dtype, valid.dtype) == (np.float32, np.bool_)


@pytest.mark.parametrize("suffix", [".pfm", ".npy", ".png"])
def test_a_window_of_any_format(tmp_path, suffix):
    stored = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, -6.0]], np.float32)
    writers = {".pfm": files.write_pfm, ".npy": files.write_npy, ".png": files.write_disparity_png}
    writers[suffix](tmp_path / f"map{suffix}", stored)
    disparity, valid = files.read_disparity(tmp_path / f"map{suffix}", window=np.s_[1:2, 1:3])
    assert valid.tolist() == [[True, False]]
    assert disparity.tolist() == [[5.0, 0.0]]


def test_values_as_stored_keep_what_is_unknown(tmp_path):
    stored = np.array([[1.0, np.nan, np.inf, -6.0]], np.float32)
    files.write_pfm(tmp_path / "map.pfm", stored)
    values = files.disparity_values(tmp_path / "map.pfm")
    assert np.array_equal(values, stored, equal_nan=True)
    negated = files.disparity_values(tmp_path / "map.pfm", lambda path: -files.read_pfm(path))
    assert np.array_equal(negated, -stored, equal_nan=True)


def test_kitti_png_round_trip(tmp_path):
    disparity = np.array([[0.5, 17.25, 255.99609375]], np.float32)
    files.write_disparity_png(tmp_path / "map.png", disparity)
    with Image.open(tmp_path / "map.png") as image:
        assert np.asarray(image).tolist() == [[128, 4416, 65535]]
    read, valid = files.read_disparity(tmp_path / "map.png")
    assert np.array_equal(read, disparity)
    assert valid.all()


def test_png_stores_what_it_cannot_hold_as_unknown(tmp_path):
    disparity = np.array([[0.0, 1e-4, -1.0, np.nan, np.inf, 256.0, 1000.0]])
    files.write_disparity_png(tmp_path / "map.png", disparity)
    read, valid = files.read_disparity(tmp_path / "map.png")
    assert valid.tolist() == [[False, True] + [False] * 5]
    assert read.tolist() == [[0.0, 1 / 256] + [0.0] * 5]


@pytest.mark.parametrize(("mode", "told"), [("L", "8-bit PNG of 1"), ("RGB", "8-bit PNG of 3")])
def test_8_bit_disparity_is_refused_with_a_reason(tmp_path, rgb, mode, told):
    Image.fromarray(rgb).convert(mode).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=rf"map\.png: {told}.*scale is unknown"):
        files.read_disparity(tmp_path / "map.png")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 2, 2), np.float32), r"\(H, W\)"),
        (np.zeros((2, 2), np.uint16), "uint16 values"),
    ],
)
def test_npy_must_be_a_float_map(tmp_path, array, reason):
    files.write_npy(tmp_path / "map.npy", array)
    with pytest.raises(ValueError, match=rf"map\.npy: .*{reason}"):
        files.read_disparity(tmp_path / "map.npy")


def npy(header: bytes, version: bytes = b"\x01\0", body: bytes = b"\0" * 16) -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 10000000), }\n"
DAMAGED_NPY = {
    "empty": b"",
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "364 TiB": npy(HUGE),
    "more than counts": npy(HUGE.replace(b"10000000, ", b"9" * 40 + b", ")),
    "no dictionary": npy(b"[[[[" * 100 + b"\n"),
    "half a dictionary": npy(b"{'descr': '<f4', 'fortran_order\n"),
    "no text": npy(b"\xff\xfe\0" * 5),
    "no type": npy(HUGE.replace(b"<f4", b"<q4")),
    "deep": npy(b"-" * 9000 + b"1\n"),
    "another version": npy(HUGE, b"\x09\0"),
    "header beyond the end": b"\x93NUMPY\x01\0\xff\xff{}",
}


@pytest.mark.parametrize("data", DAMAGED_NPY.values(), ids=DAMAGED_NPY)
def test_a_damaged_npy_is_one_line(tmp_path, data):
    (tmp_path / "map.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"map\.npy: damaged") as error:
        files.read_disparity(tmp_path / "map.npy")
    assert "\n" not in str(error.value)


def test_npy_truncated_or_pickled_is_refused(tmp_path):
    files.write_npy(tmp_path / "whole.npy", grid())
    whole = (tmp_path / "whole.npy").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.npy: damaged"):
            files.read_disparity(tmp_path / "cut.npy")
    np.save(tmp_path / "pickled.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pickled\.npy: damaged"):
        files.read_disparity(tmp_path / "pickled.npy")


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "longdouble"])
@pytest.mark.parametrize("order", "CF")
def test_any_floats_are_read_as_native_ones(tmp_path, dtype, order):
    files.write_npy(tmp_path / "map.npy", np.asarray(grid(), dtype, order=order))
    read = files.read_npy(tmp_path / "map.npy")
    assert np.array_equal(read, grid())
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_unknown_disparity_suffix_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"map\.exr.*\.npy, \.pfm, \.png"):
        files.read_disparity(tmp_path / "map.exr")


@pytest.mark.parametrize("write", [files.write_pfm, files.write_disparity_png])
def test_only_maps_are_written_as_disparity(tmp_path, write):
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        write(tmp_path / "map", np.zeros((1, 2, 3)))
    assert leftovers(tmp_path) == []


# Whole or not at all


class Interrupted(BaseException):
    """As KeyboardInterrupt: not an Exception."""


def stop_midway(path: Path) -> None:
    with files.atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        temporary.write_text("half")
        raise Interrupted


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "note.txt"
    files.write_text(path, "old\n")
    with pytest.raises(Interrupted):
        stop_midway(path)
    assert path.read_bytes() == b"old\n"
    assert leftovers(tmp_path) == ["note.txt"]


def test_an_interrupted_first_write_leaves_nothing(tmp_path):
    with pytest.raises(Interrupted):
        stop_midway(tmp_path / "note.txt")
    assert leftovers(tmp_path) == []


def test_what_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "taken", tmp_path / "file" / "below.txt"):
        with pytest.raises(OSError, match=f"{path.name}: not written"):
            files.write_text(path, "text")
    assert leftovers(tmp_path) == ["file", "taken"]


def test_json_is_readable_and_strict(tmp_path):
    value = {"epe": 0.5, "name": "Größe"}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Größe" in text
    assert text.endswith("}\n")
    for bad in (float("nan"), object()):
        with pytest.raises(ValueError, match=r"b\.json: not written"):
            files.write_json(tmp_path / "b.json", bad)
    assert leftovers(tmp_path) == ["a.json"]


def test_odd_names_become_one_printable_line(tmp_path):
    name = os.fsdecode(b"caf\xe9\nb\x1b\x7f") + "Größe\u2028"
    shown = files.printable(Path(name))
    assert shown == r"caf\xe9\nb\x1b\x7fGröße\u2028"
    assert shown.encode("utf-8").decode("utf-8").isprintable()
    files.write_json(tmp_path / "names.json", [name])
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == [name]
