"""`predict`: from two images to disparity files."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ea_psmnet.commands.options import CalibrationOptions, MatcherOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ea_psmnet.inference.matcher import StereoMatcher
    from ea_psmnet.inference.pairs import Pair
    from ea_psmnet.inference.result import StereoResult

__all__ = ["predict"]


def predict(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    out: Path,
    name: str | None = None,
    force: bool = False,
    write: tuple[str, ...] = ("disparity", "preview"),
    min_confidence: float | None = None,
    min_disparity: int = 0,
    search: Annotated[Literal["network", "auto"], tyro.conf.arg(name="range")] = "network",
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
            NAME_depth.png (16 bits, millimetres), .pfm and .npy; confidence, the probability of an
            error below 1 pixel, as .npy and as .png (8 bits, 255 for 1), and in the preview; right,
            the right view's disparity, and NAME_occluded.png, white where it contradicts the left
            one's; cloud, a coloured point cloud as
            .ply and .glb; calibration, as Middlebury's calib.txt; image, the left one, rectified.
        min_confidence: Leave pixels of less confidence, from 0 to 1, out of disparity, depth and
            cloud.
        min_disparity: Smallest disparity in pixels; negative for cameras that are toed in.
        search: Range of disparities: auto moves or widens the network's if it does not fit the
            pair, which a coarse pass finds out, and reports what exceeds it.
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

    _check_options(out, name, min_depth, max_depth, min_confidence)
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
    matcher = options.load(memory)
    matcher = matcher.searching(math.floor(scale * min_disparity), matcher.max_disparity)
    wanted = set(write)

    def matched(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> StereoResult:
        chosen = matcher if search == "network" else _ranged(matcher, (left, right))
        sure = min_confidence is not None or bool(wanted & {"confidence", "cloud"})
        return chosen(left, right, confidence=sure, right_view="right" in wanted)

    result = replace(predicted_at_scale(matched, views, scale), calibration=camera)
    if min_confidence is not None:
        result = result.masked(min_confidence)
    cloud = partial(StereoResult.points, clean=clean, min_depth=min_depth, max_depth=max_depth)
    for path in write_prediction(out, called, result, pair, write, cloud):
        print(printable(path))


def _ranged(matcher: StereoMatcher, pair: Pair) -> StereoMatcher:
    """A matcher that searches the range of a pair, which is told on stderr."""
    from ea_psmnet.inference.search_range import find_range

    found = find_range(matcher, pair)
    print(f"Range: {found}", file=sys.stderr)
    return matcher.searching(found.minimum, found.count)


def _check_options(
    out: Path,
    name: str | None,
    min_depth: float,
    max_depth: float,
    min_confidence: float | None,
) -> None:
    from ea_psmnet.tables import check_range

    check_range("min_confidence", min_confidence or 0, 0, 1)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file: --out takes a folder")
    if name is not None and (Path(name).name != name or not name.strip(".")):
        raise ValueError(f"'{name}' is not a valid --name: it is a prefix of file names in --out")
    if not 0 <= min_depth < max_depth:
        raise ValueError(f"--min-depth {min_depth:g} is not below --max-depth {max_depth:g}")
