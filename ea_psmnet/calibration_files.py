"""Reading of calibration files; their format is recognised from their content.

| format | recognised by | unit of the baseline |
|---|---|---|
| Middlebury, ETH3D `calib.txt` | `cam0=[...]` | millimetres |
| KITTI | rows `P0:` to `P3:`, or `P_rect_00:` to `P_rect_03:` | metres |
| FoundationStereo `K.txt` | ten numbers: K, then the baseline | metres |
| OpenCV's YAML, XML or JSON | `P1` and `P2`, or `Q`; `K1`, `D1`, `K2`, `D2`, `R`, `T` | metres |
| ROS `camera_info`, two YAML files | `camera_matrix` or `K`, and so on | metres |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.atomic import readable
from ea_psmnet.calibration import Calibration, Lens, RawCalibration

Matrix = NDArray[np.float64]
Found = tuple[Calibration | None, RawCalibration | None]
"""Calibrations of the rectified and of the unrectified images, as far as a file has them."""

_MOST_BYTES = 2**20
_MOST_LEVELS = 20
_EXPECTED = (
    "expected Middlebury's or ETH3D's calib.txt, KITTI's P rows, K.txt (K and baseline), OpenCV's "
    "YAML or XML, or two camera_info files of ROS"
)


def read_calibration(
    *paths: str | Path, raw: bool | None = None, camera: int | None = None
) -> Calibration | RawCalibration:
    """Read the calibration of a stereo camera.

    Args:
        paths: One file; two for ROS (a camera each) and for OpenCV's intrinsics and extrinsics.
        raw: Whether the images are unrectified. Default: if the file says how to rectify them,
            with lens distortion or a rotation between the cameras.
        camera: Number of the left camera in a file of KITTI's four: 0 (grey) or 2 (colour, the
            default).

    Returns:
        The calibration of rectified images, or of unrectified ones, with which to rectify them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file has an unknown format, or lacks something.
    """
    told = ", ".join(map(str, paths))
    if not 1 <= len(paths) <= 2:
        raise ValueError(f"{len(paths)} calibration files: expected one, or two (ROS, OpenCV)")
    texts = [_text(Path(path)) for path in paths]
    try:
        rectified, unrectified = _reader(texts[0])(texts, 2 if camera is None else camera)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{told}: {what.removeprefix('calibration: ')}") from error
    if raw is None:
        raw = unrectified is not None and (rectified is None or _needs_rectification(unrectified))
    chosen = unrectified if raw else rectified
    if chosen is None:
        missing = (
            "complete K, R and T of the unrectified" if raw else "P1 and P2, or Q, of the rectified"
        )
        raise ValueError(f"{told}: has no {missing} images")
    return chosen


def _text(path: Path) -> str:
    with readable(path):
        data = path.read_bytes()
    if len(data) > _MOST_BYTES or b"\0" in data:
        raise ValueError(f"{path}: not a calibration file: {_EXPECTED}")
    text = data.decode("utf-8", errors="replace").lstrip("\ufeff")
    if _levels(text) > _MOST_LEVELS:  # parsers take minutes for them, or end the process
        raise ValueError(f"{path}: nested too deeply for a calibration file: {_EXPECTED}")
    return text


def _levels(text: str) -> int:
    """Depth of nested brackets and XML elements."""
    deepest = depth = 0
    for mark in re.finditer(r"[\[{]|[\]}]|<\w[^<>]*(?<!/)>|</", text):
        depth += -1 if mark[0] in ("]", "}", "</") else 1
        deepest = max(deepest, depth)
    return deepest


def _reader(text: str) -> Callable[[Sequence[str], int], Found]:
    if re.search(r"^\s*cam0\s*=", text, re.MULTILINE):
        return _middlebury
    if "opencv_storage" in text or "opencv-matrix" in text or text.startswith("%YAML"):
        return _opencv
    if re.search(r"^P(_rect_0)?[0-3]:", text, re.MULTILINE):
        return _kitti
    if re.search(r"^\s*(camera_matrix|projection_matrix|[PpKk])\s*:", text, re.MULTILINE):
        return _ros
    if re.fullmatch(r"[-+.\deE,\s]+", text):
        return _numbers
    raise ValueError(f"unknown format: {_EXPECTED}")


def _needs_rectification(raw: RawCalibration) -> bool:
    bent = any(np.any(lens.distortion) for lens in (raw.left, raw.right))
    return bent or not np.allclose(raw.rotation, np.eye(3), atol=1e-6)


def _matrix(values: Any, *shape: int) -> Matrix:
    array = np.asarray(values, np.float64)
    if array.size != np.prod(shape) or not np.isfinite(array).all():
        raise ValueError(f"expected a matrix of {shape}, found {array.size} numbers")
    return array.reshape(shape)


def _floats(text: str) -> list[float]:
    return [float(number) for number in re.split(r"[\s,;]+", text.strip(" []\t\r\n")) if number]


# Text ---------------------------------------------------------------------------------------------


def _only(texts: Sequence[str]) -> str:
    if len(texts) > 1:
        raise ValueError("this format takes one file; only ROS and OpenCV calibrations take two")
    return texts[0]


def _number(fields: Mapping[str, str], name: str) -> float:
    try:
        return float(fields[name])
    except ValueError:
        raise ValueError(f"{name} is '{fields[name]}', which is not a number") from None


def _middlebury(texts: Sequence[str], _: int) -> Found:
    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", _only(texts), re.MULTILINE))
    left, right = (_matrix(_floats(fields[name]), 3, 3) for name in ("cam0", "cam1"))
    doffs = _number(fields, "doffs") if "doffs" in fields else right[0, 2] - left[0, 2]
    width, height = (int(_number(fields, n)) if n in fields else None for n in ("width", "height"))
    calibration = Calibration(
        f=left[0, 0],
        cx=left[0, 2],
        cy=left[1, 2],
        baseline=_number(fields, "baseline") / 1000,
        doffs=doffs,
        width=width,
        height=height,
        fy=None if left[1, 1] == left[0, 0] else left[1, 1],
    )
    return calibration, None


def _kitti(texts: Sequence[str], camera: int) -> Found:
    rows = dict(re.findall(r"^(\w+):\s*(.*?)\s*$", _only(texts), re.MULTILINE))
    prefix = "P_rect_0" if "P_rect_02" in rows or "P_rect_00" in rows else "P"
    left, right = (_matrix(_floats(rows[f"{prefix}{camera + i}"]), 3, 4) for i in (0, 1))
    size = rows.get(f"S_rect_0{camera}")
    width, height = map(int, _floats(size)) if size else (None, None)
    return Calibration.from_projections(left, right, width=width, height=height), None


def _numbers(texts: Sequence[str], _: int) -> Found:
    values = _floats(_only(texts))
    if len(values) != 10 or values[8] != 1:
        raise ValueError(f"{len(values)} numbers: expected the nine of K, then the baseline")
    k = _matrix(values[:9], 3, 3)
    fy = None if np.isclose(k[1, 1], k[0, 0]) else k[1, 1]
    return Calibration(f=k[0, 0], cx=k[0, 2], cy=k[1, 2], baseline=values[9], fy=fy), None


# OpenCV -------------------------------------------------------------------------------------------

_NAMES = {
    "K": "k m cm mtx cam cameramatrix intrinsic intrinsics intrinsicmatrix camerak",
    "D": "d dist distcoeffs distcoefs distcoeff distortion distortioncoefficients",
    "P": "p proj projection projectionmatrix",
    "R": "r rot rotation rotationmatrix",
    "T": "t tr trns trans translation translationvector tvec",
    "Q": "q disptodepth disparitytodepth reprojectionmatrix",
    "size": "imagesize size imgsize resolution imageresolution",
    "width": "width imagewidth imgwidth",
    "height": "height imageheight imgheight",
    "model": "model cameramodel distortionmodel lens",
    "fisheye": "fisheye isfisheye",
}
"""Names in use for each quantity, without case, signs and side."""
_QUANTITIES = {name: quantity for quantity, names in _NAMES.items() for name in names.split()}
_SIDED = frozenset("KDPR")
_SIDE, _NAME = r"(?P<side>left|right|[lr012])", r"(?P<name>.+?)"
_SIDES = {"left": "1", "l": "1", "right": "2", "r": "2"}
_FISHEYE = ("fisheye", "equidistant", "kannalabrandt", "kannalabrandt4")


def _opencv(texts: Sequence[str], _: int) -> Found:
    found: dict[str, Any] = {}
    for text in texts:
        for name, value in _storage(text).items():
            if key := _quantity(name):
                found.setdefault(key, value)
    if "K0" in found:  # counted from 0
        found |= {f"{q}{i + 1}": found.get(f"{q}{i}") for q in _SIDED for i in (1, 0)}
    width, height = _size(found)
    rectified = _rectified(found, width, height)
    unrectified = _unrectified(found, rectified, width, height)
    needed = ("K1", "K2", "R", "T")
    missing = [name for name in needed if found.get(name) is None]
    if rectified is None and unrectified is None and len(missing) < len(needed):
        raise ValueError(
            f"{' and '.join(missing)} missing: unrectified images need {', '.join(needed)}, which "
            "may be in two files; rectified ones P1 and P2, or Q"
        )
    return rectified, unrectified


def _quantity(name: str) -> str | None:
    """`cameraMatrixLeft`, `LEFT.K` and `M1` are all K1; None for names of anything else.

    R is the rotation between the cameras, R1 and R2 turn them into the rectified frame.
    """
    plain = re.sub(r"[\W_]", "", name).lower()
    if plain in _QUANTITIES:
        return _QUANTITIES[plain]
    for pattern in (_SIDE + _NAME, _NAME + _SIDE):
        match = re.fullmatch(pattern, plain)
        quantity = match and _QUANTITIES.get(match["name"])
        if match and quantity in _SIDED:
            return quantity + _SIDES.get(match["side"], match["side"])
        if quantity in ("width", "height"):
            return quantity
    return None


def _storage(text: str) -> dict[str, Any]:
    """Matrices, numbers and texts at the first level of a FileStorage."""
    mode = cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY
    try:
        storage = cv2.FileStorage(text, mode)
        root = storage.root()
        return {name: _node(root.getNode(name)) for name in root.keys()}  # noqa: SIM118
    except (cv2.error, SystemError) as error:
        raise ValueError("damaged, or not an OpenCV YAML or XML file") from error


def _node(node: cv2.FileNode) -> Any:
    if node.isInt() or node.isReal():
        return node.real()
    if node.isString():
        return node.string()
    if node.isSeq():
        return [_node(node.at(i)) for i in range(node.size())]
    try:
        return node.mat()
    except cv2.error:  # a map of something else
        return None


def _size(found: Mapping[str, Any]) -> tuple[int | None, int | None]:
    if found.get("size") is not None:
        width, height = _matrix(found["size"], 2)
        return int(width), int(height)
    if "width" in found and "height" in found:
        return int(found["width"]), int(found["height"])
    return None, None


def _rectified(
    found: Mapping[str, Any], width: int | None, height: int | None
) -> Calibration | None:
    if found.get("P1") is not None and found.get("P2") is not None:
        left, right = (_matrix(found[name], 3, 4) for name in ("P1", "P2"))
        return Calibration.from_projections(left, right, width=width, height=height)
    if found.get("Q") is None:
        return None
    q = _matrix(found["Q"], 4, 4)
    if q[3, 2] == 0:
        raise ValueError("Q[3, 2], the inverse of the baseline, is 0")
    return Calibration(
        f=q[2, 3],
        cx=-q[0, 3],
        cy=-q[1, 3],
        baseline=abs(1 / q[3, 2]),
        doffs=q[3, 3] / q[3, 2],
        width=width,
        height=height,
    )


def _unrectified(
    found: Mapping[str, Any], rectified: Calibration | None, width: int | None, height: int | None
) -> RawCalibration | None:
    def lacks(*names: str) -> bool:
        return any(found.get(name) is None for name in names)

    if lacks("K1", "K2"):
        return None
    if not lacks("R", "T"):
        rotation, translation = _rotation(found["R"]), _matrix(found["T"], 3)
    elif rectified is None or lacks("R1", "R2"):
        return None
    else:
        turns = _matrix(found["R1"], 3, 3), _matrix(found["R2"], 3, 3)
        rotation, translation = _between(*turns, rectified.baseline)
    model = re.sub(r"[\W_]", "", str(found.get("model", ""))).lower()
    return RawCalibration(
        _lens(found["K1"], found.get("D1")),
        _lens(found["K2"], found.get("D2")),
        rotation,
        translation,
        width,
        height,
        fisheye=model in _FISHEYE or bool(found.get("fisheye")),
    )


def _rotation(values: Any) -> Matrix:
    """Rotation matrix from itself or from a rotation vector."""
    array = np.asarray(values, np.float64)
    return _matrix(cv2.Rodrigues(array.reshape(3))[0] if array.size == 3 else array, 3, 3)


def _between(left: Matrix, right: Matrix, baseline: float) -> tuple[Matrix, Matrix]:
    """R and T from the left to the right camera, from their rotations into the rectified frame.

    In that frame the right camera lies at (baseline, 0, 0).
    """
    return right.T @ left, right.T @ np.array((-baseline, 0, 0))


def _lens(matrix: Any, distortion: Any) -> Lens:
    coefficients = [] if distortion is None else distortion
    return Lens(_matrix(matrix, 3, 3), np.asarray(coefficients, np.float64).reshape(-1))


# ROS ----------------------------------------------------------------------------------------------

_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")
_ROS_NAMES = {
    "K": ("camera_matrix", "K", "k"),
    "D": ("distortion_coefficients", "D", "d"),
    "R": ("rectification_matrix", "R", "r"),
    "P": ("projection_matrix", "P", "p"),
    "width": ("image_width", "width"),
    "height": ("image_height", "height"),
}


def _ros(texts: Sequence[str], _: int) -> Found:
    if len(texts) != 2:
        raise ValueError("only one ROS camera_info file: give two, left and right")
    left, right = sorted(map(_camera_info, texts), key=lambda info: -info["P"][0, 3])
    size = {"width": left["width"], "height": left["height"]}
    rectified = Calibration.from_projections(left["P"], right["P"], **size)
    raw = RawCalibration(
        _lens(left["K"], left["D"]),
        _lens(right["K"], right["D"]),
        *_between(left["R"], right["R"], rectified.baseline),
        **size,
        fisheye=left["model"] == "equidistant",
    )
    return rectified, raw


def _camera_info(text: str) -> dict[str, Any]:
    """Matrices, image size and distortion model of one camera."""
    fields = _yaml(text)

    def value(quantity: str) -> Any:
        name = next((n for n in _ROS_NAMES[quantity] if n in fields), None)
        if name is None:
            raise KeyError(_ROS_NAMES[quantity][0])
        given = fields[name]
        return given["data"] if isinstance(given, dict) else given

    model = str(fields.get("distortion_model", "plumb_bob"))
    if model not in _MODELS:
        raise ValueError(f"distortion model '{model}': expected one of {', '.join(_MODELS)}")
    matrices = {"K": (3, 3), "R": (3, 3), "P": (3, 4)}
    return {
        **{name: _matrix(value(name), *shape) for name, shape in matrices.items()},
        "D": np.asarray(value("D"), np.float64),
        "width": int(value("width")),
        "height": int(value("height")),
        "model": model,
    }


def _yaml(text: str) -> dict[str, Any]:
    """The first document of a YAML file; `ros2 topic echo` ends each with three dashes."""
    import yaml  # late: only these files need it

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("has YAML aliases (*name): write the values out")
        fields = next((d for d in yaml.safe_load_all(text) if d), None)
    except yaml.YAMLError as error:
        raise ValueError(
            f"damaged, or not a YAML file: {next(iter(str(error).splitlines()))}"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"unknown format: {_EXPECTED}")
    return fields
