"""Every format of calibration files, written here and read back."""

import re

import cv2
import numpy as np
import pytest
from test_calibration import raw_calibration

from ea_psmnet.calibration import Calibration
from ea_psmnet.calibration_files import read_calibration

F, CX, CY, BASELINE, DOFFS = 700.5, 310.25, 245.5, 0.12, 12.5
WIDTH, HEIGHT = 640, 480
EXPECTED = Calibration(F, CX, CY, BASELINE, DOFFS, WIDTH, HEIGHT)
K = np.array(((F, 0, CX), (0, F, CY), (0, 0, 1)))
P1 = np.hstack((K, np.zeros((3, 1))))
P2 = P1 + np.array(((0, 0, DOFFS, -F * BASELINE), (0, 0, 0, 0), (0, 0, 0, 0)))
Q = np.array(((1, 0, 0, -CX), (0, 1, 0, -CY), (0, 0, 0, F), (0, 0, 1 / BASELINE, DOFFS / BASELINE)))


def same(found, expected):
    assert isinstance(found, Calibration)
    for name in ("f", "cx", "cy", "baseline", "doffs"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert (found.width, found.height) == (expected.width, expected.height)


def stored(path, values):
    """Write matrices, texts and numbers as OpenCV does; the suffix decides the format."""
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in values.items():
        storage.write(
            name.replace(".", "_"),
            np.asarray(value, np.float64) if isinstance(value, list) else value,
        )
    storage.release()
    # OpenCV reads names with points, as `LEFT.K`, but does not write them.
    path.write_text(re.sub("(LEFT|RIGHT)_", r"\1.", path.read_text()))
    return path


def text_file(path, text):
    path.write_text(text)
    return path


# Text ---------------------------------------------------------------------------------------------


def test_middlebury_in_millimetres(tmp_path):
    text = (
        f"cam0=[{F} 0 {CX}; 0 {F} {CY}; 0 0 1]\ncam1=[{F} 0 {CX + DOFFS}; 0 {F} {CY}; 0 0 1]\n"
        f"doffs={DOFFS}\nbaseline={1000 * BASELINE}\nwidth={WIDTH}\nheight={HEIGHT}\nndisp=280\n"
        "isint=0\nvmin=25\nvmax=248\ndyavg=0\ndymax=0\n"
    )
    same(read_calibration(text_file(tmp_path / "calib.txt", text)), EXPECTED)
    without = "\n".join(line for line in text.splitlines() if not line.startswith("doffs"))
    same(read_calibration(text_file(tmp_path / "a.txt", without)), EXPECTED)
    same(read_calibration(text_file(tmp_path / "b.txt", EXPECTED.as_middlebury())), EXPECTED)


def test_the_calibration_that_is_written_keeps_two_focal_lengths(tmp_path):
    squeezed = EXPECTED.scaled_to(HEIGHT, 2 * WIDTH)
    found = read_calibration(text_file(tmp_path / "calib.txt", squeezed.as_middlebury()))
    same(found, squeezed)
    assert found.fy == pytest.approx(F)


def kitti_rows(prefix):
    """Four cameras in a row: grey 0 and 1, 0.54 m apart; colour 2 and 3, 0.53 m apart."""
    shifts = (0.0, -0.54 * F, 0.06 * F, -0.47 * F)
    rows = {f"{prefix}{i}": P1 + np.eye(3, 4, 3) * (s, 0, 0, 0) for i, s in enumerate(shifts)}
    for i, shift in enumerate(shifts):
        rows[f"{prefix}{i}"] = P1.copy()
        rows[f"{prefix}{i}"][0, 3] = shift
    return "".join(f"{n}: {' '.join(f'{v:e}' for v in p.ravel())}\n" for n, p in rows.items())


def test_kitti(tmp_path):
    path = text_file(tmp_path / "000000.txt", kitti_rows("P") + "Tr_velo_to_cam: 1 2 3\n")
    same(read_calibration(path), Calibration(F, CX, CY, 0.53))
    same(read_calibration(path, camera=0), Calibration(F, CX, CY, 0.54))
    raw = f"calib_time: 09-Jan-2012\nS_rect_02: {WIDTH:e} {HEIGHT:e}\n" + kitti_rows("P_rect_0")
    path = text_file(tmp_path / "calib_cam_to_cam.txt", raw)
    same(read_calibration(path), Calibration(F, CX, CY, 0.53, 0, WIDTH, HEIGHT))


def test_foundation_stereo(tmp_path):
    text = " ".join(str(v) for v in K.ravel()) + f"\n{BASELINE}\n"
    found = read_calibration(text_file(tmp_path / "K.txt", text))
    same(found, Calibration(F, CX, CY, BASELINE))


# OpenCV -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
@pytest.mark.parametrize(
    "names", [("P1", "P2"), ("proj_left", "proj_right"), ("LEFT.P", "RIGHT.P")]
)
def test_opencv_projections(tmp_path, suffix, names):
    if suffix != "yml" and "." in names[0]:
        pytest.skip("points are not part of names there")
    values = {names[0]: P1, names[1]: P2, "image_width": WIDTH, "image_height": HEIGHT}
    same(read_calibration(stored(tmp_path / f"stereo.{suffix}", values)), EXPECTED)


def test_opencv_q(tmp_path):
    values = {"Q": Q, "imageSize": [WIDTH, HEIGHT]}
    same(read_calibration(stored(tmp_path / "q.yml", values)), EXPECTED)


NAMES = [
    ("K1", "D1", "K2", "D2", "R", "T"),
    ("M1", "D1", "M2", "D2", "R", "T"),
    ("cameraMatrix1", "distCoeffs1", "cameraMatrix2", "distCoeffs2", "R", "T"),
    ("left_camera_matrix", "left_distortion", "right_camera_matrix", "right_distortion",
     "rotation", "translation"),
    ("K0", "D0", "K1", "D1", "R", "T"),
    ("mtxL", "distL", "mtxR", "distR", "Rot", "Trns"),
]  # fmt: skip


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_opencv_unrectified(tmp_path, names):
    raw = raw_calibration("plumb_bob")
    values = (raw.left.matrix, raw.left.distortion, raw.right.matrix, raw.right.distortion,
              raw.rotation, raw.translation)  # fmt: skip
    path = stored(tmp_path / "stereo.yml", dict(zip(names, values, strict=True)))
    same_raw(read_calibration(path), raw)


def same_raw(found, raw):
    for side in ("left", "right"):
        for name in ("matrix", "distortion"):
            expected = getattr(getattr(raw, side), name)
            np.testing.assert_allclose(getattr(getattr(found, side), name), expected, atol=1e-9)
    np.testing.assert_allclose(found.rotation, raw.rotation, atol=1e-9)
    np.testing.assert_allclose(found.translation, raw.translation, atol=1e-9)
    assert found.fisheye == raw.fisheye


def test_opencv_intrinsics_and_extrinsics_in_two_files(tmp_path):
    raw = raw_calibration("equidistant")
    lenses = {"M1": raw.left.matrix, "D1": raw.left.distortion, "M2": raw.right.matrix,
              "D2": raw.right.distortion, "distortion_model": "fisheye"}  # fmt: skip
    vector = cv2.Rodrigues(raw.rotation)[0]
    places = {"R": vector, "T": raw.translation, "R1": np.eye(3), "P1": P1, "P2": P2}
    paths = [stored(tmp_path / f"{n}.yml", v) for n, v in (("in", lenses), ("ex", places))]
    same_raw(read_calibration(*paths), raw)  # of both calibrations, that of the images as taken
    found = read_calibration(*paths, raw=False)
    same(found, Calibration(F, CX, CY, BASELINE, DOFFS))


def test_opencv_rectifying_rotations_stand_for_r_and_t(tmp_path):
    raw = raw_calibration("plumb_bob")
    turns = cv2.stereoRectify(
        raw.left.matrix, raw.left.distortion, raw.right.matrix, raw.right.distortion,
        (WIDTH, HEIGHT), raw.rotation, raw.translation[:, None], alpha=0)  # fmt: skip
    values = {"LEFT.K": raw.left.matrix, "LEFT.D": raw.left.distortion, "LEFT.R": turns[0],
              "LEFT.P": turns[2], "RIGHT.K": raw.right.matrix, "RIGHT.D": raw.right.distortion,
              "RIGHT.R": turns[1], "RIGHT.P": turns[3]}  # fmt: skip
    same_raw(read_calibration(stored(tmp_path / "euroc.yaml", values)), raw)
    plain = {name: value.ravel().tolist() for name, value in values.items()}
    same_raw(read_calibration(stored(tmp_path / "plain.yaml", plain)), raw)


# ROS ----------------------------------------------------------------------------------------------


def camera_info(lens, turn, projection, model, echo):
    matrices = {"K": lens.matrix, "D": lens.distortion, "R": turn, "P": projection}
    if echo:  # as `ros2 topic echo` prints a message
        lists = "".join(f"{n.lower()}: {v.ravel().tolist()}\n" for n, v in matrices.items())
        return f"header:\n  frame_id: cam\nheight: {HEIGHT}\nwidth: {WIDTH}\n" \
               f"distortion_model: {model}\n{lists}binning_x: 0\n---\n"  # fmt: skip
    names = {"K": "camera_matrix", "D": "distortion_coefficients", "R": "rectification_matrix",
             "P": "projection_matrix"}  # fmt: skip
    blocks = "".join(
        f"{names[n]}:\n  rows: {len(np.atleast_2d(v))}\n  cols: {np.atleast_2d(v).shape[1]}\n"
        f"  data: {v.ravel().tolist()}\n"
        for n, v in matrices.items()
    )
    size = f"image_width: {WIDTH}\nimage_height: {HEIGHT}\n"
    return f"{size}camera_name: narrow_stereo\ndistortion_model: {model}\n{blocks}"


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial", "equidistant"])
def test_ros_camera_infos(tmp_path, model, echo):
    raw = raw_calibration(model)
    stereo = (raw.left.matrix, np.zeros(4), raw.right.matrix, np.zeros(4), (WIDTH, HEIGHT))
    turns = cv2.stereoRectify(*stereo, raw.rotation, raw.translation[:, None])[:2]
    paths = [
        text_file(tmp_path / f"{name}.yaml", camera_info(lens, turn, p, model, echo))
        for name, lens, turn, p in zip(
            ("left", "right"), (raw.left, raw.right), turns, (P1, P2), strict=True
        )
    ]
    found = read_calibration(*paths)
    np.testing.assert_allclose(np.linalg.norm(found.translation), BASELINE, rtol=1e-6)
    same_raw(found, raw)
    same_raw(read_calibration(*reversed(paths)), raw)  # P tells which camera is the right one
    same(read_calibration(*paths, raw=False), EXPECTED)


# Errors -------------------------------------------------------------------------------------------

EYE = "[1 0 1; 0 1 1; 0 0 1]"


def test_a_second_file_is_not_ignored(tmp_path):
    text = f"cam0={EYE}\ncam1={EYE}\nbaseline=3\n"
    paths = [text_file(tmp_path / name, text) for name in ("a.txt", "b.txt")]
    read_calibration(paths[0])
    with pytest.raises(ValueError, match=r"a\.txt, .*b\.txt: this format takes one file"):
        read_calibration(*paths)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown format: expected Middlebury's"),
        ("to whom it may concern\n", "unknown format"),
        ("700 0 310 0 700 245 0 0 1\n", "9 numbers: expected the nine of K, then the baseline"),
        ("cam0=[1 0 1; 0 1 1; 0 0 1]\n", "'cam1' is missing"),
        ("cam0=[1 0 1; 0 1 1]\ncam1=[1 0 1; 0 1 1]\nbaseline=3\n", r"matrix of \(3, 3\)"),
        (f"cam0={EYE}\ncam1={EYE}\nbaseline=far\n", "baseline is 'far', which is not a number"),
        ("P0: 1 2 3\n", "'P2' is missing"),
        ("P2: 7 0 1 0 0 7 1 0 0 0 1 0\nP3: 7 0 1 5 0 7 1 0 0 0 1 0\n", "right camera given first"),
        ("P2: 7 0 1 0 0 7 1 0 0 0 1 0\nP3: 7 0 1 -1 0 7 1 9 0 0 1 0\n", "above each other"),
        ("camera_matrix: {data: [1]}\n", "only one ROS camera_info file: give two"),
        (f"cam0={EYE}\ncam1={EYE}\nbaseline=3\nwidth=0\nheight=0\n", "width is 0: expected more"),
        ("P2: 7 0 1 0 0 7 1 0 0 0 1 0\nP3: 7 0 1 0 0 7 1 0 0 0 1 0\n", "the baseline is 0: calib"),
        ("P2: 0 0 0 0 0 0 0 0 0 0 0 0\nP3: 0 0 0 0 0 0 0 0 0 0 0 0\n", "the focal length is 0"),
        ("%YAML:1.0\n---\nrms: 0.3\n", "has no P1 and P2, or Q"),
        ("%YAML:1.0\n---\nP1: !!opencv-matrix\n   rows: 3", "calib.txt: "),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, text, message):
    path = text_file(tmp_path / "calib.txt", text)
    with pytest.raises(ValueError, match=message) as error:
        read_calibration(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("R", "T"), "R and T missing: unrectified images need K1, K2, R, T"),
        (("T",), "T missing: .*two files"),
        (("M2", "D2"), "K2 missing"),
    ],
)
def test_what_an_opencv_file_lacks_is_named(tmp_path, missing, message):
    raw = raw_calibration("plumb_bob")
    values = {"M1": raw.left.matrix, "D1": raw.left.distortion, "M2": raw.right.matrix,
              "D2": raw.right.distortion, "R": raw.rotation, "T": raw.translation}  # fmt: skip
    path = stored(tmp_path / "some.yml", {n: v for n, v in values.items() if n not in missing})
    with pytest.raises(ValueError, match=rf"some\.yml: {message}"):
        read_calibration(path)


def test_images_and_missing_files_are_refused(tmp_path):
    (tmp_path / "left.png").write_bytes(b"\x89PNG\r\n\0\0")
    with pytest.raises(ValueError, match=r"left\.png: not a calibration file"):
        read_calibration(tmp_path / "left.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_calibration(tmp_path / "none.txt")
    info = "camera_matrix: {data: [1]}\ndistortion_model: kannala\n"
    paths = [text_file(tmp_path / f"{i}.yaml", info) for i in (0, 1)]
    with pytest.raises(ValueError, match="distortion model 'kannala': expected one of plumb_bob"):
        read_calibration(*paths)


def test_yaml_may_not_repeat_itself(tmp_path):
    """Each line of aliases makes ten times as many numbers."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    info = "\n".join([*lines, "camera_matrix: {data: *a8}"])
    paths = [text_file(tmp_path / f"{i}.yaml", info) for i in (0, 1)]
    with pytest.raises(ValueError, match="has YAML aliases"):
        read_calibration(*paths)


@pytest.mark.parametrize(
    "text",
    [
        "P: " + "[" * 2000 + "]" * 2000,
        "%YAML:1.0\n---\na: " + "[" * 100_000,
        '{"opencv_storage": ' + "[" * 100_000,
        "<opencv_storage>" + "<a>" * 100_000,
    ],
)
def test_deep_nesting_is_refused_before_it_is_parsed(tmp_path, text):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(ValueError, match="nested too deeply for a calibration file"):
        read_calibration(tmp_path / "c.yml")
