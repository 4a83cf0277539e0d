"""`predict`: from two images to disparity files."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.commands.options import CalibrationOptions, MatcherOptions

__all__ = ["predict"]


def predict(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    out: Path,
    name: str | None = None,
    force: bool = False,
    write: tuple[str, ...] = ("disparity", "preview"),
    scale: float = 1,
    memory: str | None = None,
    clean: bool = True,
    min_depth: float = 0,
    max_depth: float = float("inf"),
    calibration: Annotated[CalibrationOptions, tyro.conf.arg(name="")] = CalibrationOptions(),
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Predict the disparity of a rectified pair.

    Writes NAME_disparity.pfm (float32 pixels), NAME_disparity.png (16 bits, pixels times 256, as
    in KITTI), NAME_preview.png for viewing, and NAME_pair.json with the input images. --write
    chooses among these and other outputs.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        out: Folder for the results.
        name: Prefix of the names of the results; default: the common part of the images' names, or
            the name of their folder.
        force: Overwrite the results of another pair.
        write: What to write besides NAME_pair.json: disparity; preview; depth, in metres as
            NAME_depth.png (16 bits, millimetres), .pfm and .npy; cloud, a coloured point cloud as
            .ply and .glb; calibration, as Middlebury's calib.txt; image, the left one, rectified.
        scale: Factor on the size at which the pair is predicted. 0.5 needs less memory and time and
            doubles the range of disparities, with less detail. Results have the original size.
        memory: Memory limit of the program on the device, for example 8GiB; default: the free
            memory. Pairs that need more are predicted in overlapping tiles.
        clean: Leave flying points at depth edges, points that the right image does not show, and
            points of low confidence out of the cloud.
        min_depth: Smallest depth in the cloud, in metres.
        max_depth: Largest depth in the cloud, in metres.
        calibration: Calibration of the camera.
        options: Network that predicts, and its options.
    """
    from ea_psmnet.calibration import RawCalibration
    from ea_psmnet.files import printable
    from ea_psmnet.inference.pairs import as_pair, calibrated_pair, predicted_at_scale
    from ea_psmnet.inference.prediction_files import (
        OUTPUTS,
        check_unclaimed,
        pair_name,
        pair_record,
        prediction_paths,
        write_prediction,
    )
    from ea_psmnet.inference.result import StereoResult

    _check_options(out, name, min_depth, max_depth)
    views = as_pair((left, right))
    called, pair = name or pair_name(left, right), pair_record(left, right)
    for path in prediction_paths(out, called, write):
        if path.exists() and any(map(path.samefile, (left, right, *calibration.calib))):
            raise ValueError(f"{path}: would overwrite an input: give another --out")
    if not force:
        check_unclaimed(out, called, pair)
    given = calibration.load(left, *views[0].shape[:2])
    views, camera = calibrated_pair(views, given)
    metric = next((output for output in write if OUTPUTS[output].metric), None)
    if metric and camera is None:
        raise ValueError(f"--write {metric} needs --calib FILE, or --focal and --baseline")
    if isinstance(given, RawCalibration):
        print("The pair was rectified; if it already was, give --raw False", file=sys.stderr)
    matcher = options.predictor(memory)
    result = replace(predicted_at_scale(matcher, views, scale), calibration=camera)
    cloud = partial(StereoResult.points, clean=clean, min_depth=min_depth, max_depth=max_depth)
    for path in write_prediction(out, called, result, pair, write, cloud):
        print(printable(path))


def _check_options(out: Path, name: str | None, min_depth: float, max_depth: float) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file: --out takes a folder")
    if name is not None and (Path(name).name != name or not name.strip(".")):
        raise ValueError(f"'{name}' is not a valid --name: it is a prefix of file names in --out")
    if not 0 <= min_depth < max_depth:
        raise ValueError(f"--min-depth {min_depth:g} is not below --max-depth {max_depth:g}")
