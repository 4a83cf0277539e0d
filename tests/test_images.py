"""Images of every depth and layout: right values, and no header believed that asks too much."""

from __future__ import annotations

import os
import struct
import warnings
import zlib

import numpy as np
import pytest

from ea_psmnet import images
from ea_psmnet.files import read_disparity, read_image


def read(folder, data: bytes, name: str = "image"):
    (folder / name).write_bytes(data)
    return read_image(folder / name)


# White as the format states it


def pnm(magic: str, maximum: int, values: list[int]) -> bytes:
    """One row; colour where the magic number says so."""
    width = len(values) // (3 if magic in ("P3", "P6") else 1)
    header = f"{magic}\n# a camera's\n{width} 1\n{maximum}\n".encode()
    if magic in ("P2", "P3"):
        return header + " ".join(map(str, values)).encode() + b"\n"
    return header + np.array(values, ">u2" if maximum > 255 else "u1").tobytes()


@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("maximum", [1, 15, 100, 255, 256, 1023, 4095, 16383, 65535])
def test_pnm_values_are_shares_of_the_maximum(tmp_path, magic, maximum):
    values = sorted({0, 1, maximum // 3, maximum // 2, maximum - 1, maximum})
    values = (values * 3)[: 3 * (len(values) // 3) or 3]
    shown = read(tmp_path, pnm(magic, maximum, values))
    expected = np.rint(np.array(values) * 255 / maximum)
    given = shown.reshape(-1) if magic in ("P3", "P6") else shown[0, :, 0]
    # OpenCV scales text of 8 bits itself, and rounds down.
    assert given.tolist() == pytest.approx(expected.tolist(), abs=magic in ("P2", "P3"))
    assert (given[expected == 255] == 255).all()


def test_pnm_values_over_the_maximum_are_white(tmp_path):
    for data in (pnm("P5", 1023, [1023, 2000, 0]), pnm("P5", 100, [100, 200, 0])):
        assert read(tmp_path, data)[0, :, 0].tolist() == [255, 255, 0]


def tiff(stored: np.ndarray, bits: int, colours: int, *, planes: bool = False, **tags) -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, C) `stored`, its values packed already."""
    samples = 1 if stored.ndim == 2 else stored.shape[2]
    strips = [stored[..., i] for i in range(samples)] if planes else [stored]
    body = [strip.tobytes() for strip in strips]
    width = tags.get("width", stored.shape[1])
    kind = {"u": 1, "i": 2, "f": 3}[stored.dtype.kind]
    entries = [
        (256, width),
        (257, stored.shape[0]),
        (258, *[bits] * samples),
        (259, 1),
        (262, colours),
        (273, *[0] * len(body)),
        (274, tags.get("orientation", 1)),
        (277, samples),
        (278, stored.shape[0]),
        (279, *map(len, body)),
        (284, 2 if planes else 1),
        (339, *[kind] * samples),
    ]
    start = 8 + 2 + 12 * len(entries) + 4
    outside = sum(4 * (len(values) - 1) for values in entries if len(values) > 2)
    places = np.cumsum([start + outside, *map(len, body)])[:-1]
    entries[5] = (273, *places.tolist())
    table, extra = struct.pack("<H", len(entries)), b""
    for tag, *values in entries:
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            extra += packed
            packed = struct.pack("<I", start + len(extra) - len(packed))
        table += struct.pack("<HHI", tag, 4, len(values)) + packed
    return b"II*\0" + struct.pack("<I", 8) + table + b"\0" * 4 + extra + b"".join(body)


DEEP = np.array([[0, 1000, 65535, 30000]], "<u2")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_white_is_zero_tiff_is_not_inverted(tmp_path, bits):
    stored = DEEP if bits == 16 else (DEEP >> 8).astype(np.uint8)
    black = read(tmp_path, tiff(stored, bits, 1))
    assert black[0, :, 0].tolist() == pytest.approx([0, 4, 255, 117], abs=1)
    white = read(tmp_path, tiff(np.invert(stored), bits, 0))
    assert (white == black).all()


def test_a_tiff_of_twelve_packed_bits(tmp_path):
    text = "".join(f"{value:012b}" for value in (0, 1000, 4095, 2000))
    packed = np.array([[int(text[i : i + 8], 2) for i in range(0, 48, 8)]], np.uint8)
    shown = read(tmp_path, tiff(packed, 12, 1, width=4))
    assert shown[0, :, 0].tolist() == [0, 62, 255, 125]


def test_separate_planes_are_put_together_or_refused(tmp_path):
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    assert (read(tmp_path, tiff(rgb, 8, 2, planes=True)) == rgb).all()
    deep = rgb.astype("<u2") * 257
    assert (read(tmp_path, tiff(deep, 16, 2)) == rgb).all()
    with pytest.raises(ValueError, match=r"image: TIFF of 16 bits with a plane for each colour; "):
        read(tmp_path, tiff(deep, 16, 2, planes=True))


@pytest.mark.parametrize(
    ("dtype", "channels"), [("<f4", 1), ("<f4", 3), ("<u4", 1), ("<i2", 1), ("<f8", 1)]
)
def test_other_tiffs_are_told_by_their_type_and_not_called_damaged(tmp_path, dtype, channels):
    stored = np.ones((2, 4, channels), dtype)
    data = tiff(stored if channels > 1 else stored[..., 0], 8 * stored.itemsize, 1 + (channels > 1))
    with pytest.raises(ValueError, match=rf"image: image of {np.dtype(dtype).name} values"):
        read(tmp_path, data)


def test_a_tiffs_orientation_is_applied(tmp_path):
    stored = np.array([[0, 100, 200]], np.uint8)
    shown = read(tmp_path, tiff(stored, 8, 1, orientation=6))
    assert shown[..., 0].tolist() == [[0], [100], [200]]


@pytest.mark.parametrize("length", [4, 7, 9, 60, 150])
def test_a_tiff_cut_in_its_header_is_damaged(tmp_path, length):
    with pytest.raises(ValueError, match="image: damaged"):
        read(tmp_path, tiff(DEEP, 16, 1)[:length])


# Nearly black


@pytest.mark.parametrize(("maximum", "brightest", "dark"), [(65535, 4095, True), (65535, 4096, 0)])
def test_a_sixteenth_of_the_range_is_told(tmp_path, maximum, brightest, dark):
    data = pnm("P5", maximum, [0, brightest])
    if not dark:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(tmp_path, data)
        return
    with pytest.warns(UserWarning, match=r"image: 16-bit image of values up to 4095, nearly black"):
        read(tmp_path, data)


def test_who_reads_may_take_what_is_told(tmp_path):
    (tmp_path / "dark.pgm").write_bytes(pnm("P5", 65535, [0, 7]))
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "dark.pgm", told.append)
    assert len(told) == 1


# What a header claims


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """One bit a pixel, all black, far smaller than what it unpacks to; `rows` are there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    packed = zlib.compress(bytes(1 + (width + 7) // 8) * (height if rows is None else rows))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


BOMBS = {
    "png": png(32767, 32767, rows=3),
    "pgm": b"P5\n40000 40000\n255\n" + b"\0" * 50,
    "ascii": b"P3 # wide\n999999999 2 255\n0 0 0",
    "bitmap": b"P4\n99999 99999\n" + b"\0" * 50,
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6),
    "tiff": tiff(DEEP, 16, 1, width=2**30),
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\1\x11\0\2\x11\0\3\x11\0\xff\xda"
    + b"\0" * 20,
}


@pytest.mark.parametrize("name", BOMBS)
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, name, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"image: states \d+x\d+ pixels, more than 268,435,456"):
        read(tmp_path, BOMBS[name])


def test_as_many_as_the_limit_are_decoded(tmp_path, monkeypatch):
    data = png(1024, 128)
    assert read(tmp_path, data).shape == (128, 1024, 3)
    monkeypatch.setattr(images, "_MAX_PIXELS", 1024 * 128 - 1)
    with pytest.raises(ValueError, match="states 1024x128 pixels"):
        read(tmp_path, data)


def test_more_than_the_free_memory_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "free_memory", lambda: 10**6)
    with pytest.raises(OSError, match=r"image: cannot be read \(out of memory\)$"):
        read(tmp_path, png(1024, 128))


@pytest.mark.parametrize("error", [MemoryError(), images.cv2.error("Insufficient memory")])
def test_memory_that_ends_while_decoding_is_one_line(tmp_path, monkeypatch, error):
    if isinstance(error, images.cv2.error):
        error.code = -4

    def imdecode(*_):
        raise error

    monkeypatch.setattr(images.cv2, "imdecode", imdecode)
    with pytest.raises(OSError, match=r"image: cannot be read \(out of memory\)$"):
        read(tmp_path, png(64, 64))


def test_memory_that_ends_while_a_map_is_read_is_one_line(tmp_path):
    def decode(_):
        raise MemoryError

    with pytest.raises(OSError, match=r"map\.png: cannot be read \(out of memory\)$"):
        read_disparity(tmp_path / "map.png", decode)


@pytest.mark.parametrize("reader", [read_image, read_disparity])
@pytest.mark.parametrize("suffix", [".png", ".pfm", ".npy"])
def test_pipes_devices_and_folders_are_no_files(tmp_path, reader, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name, what in (("pipe", "a pipe"), ("zero", "a pipe or a device"), ("folder", "a folder")):
        with pytest.raises(OSError, match=rf"{name}{suffix}: cannot be read \({what}.*not a file"):
            reader(tmp_path / f"{name}{suffix}")
