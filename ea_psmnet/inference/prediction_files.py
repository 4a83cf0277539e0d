"""The files of a prediction: their names, and the pair that they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import (
    atomic_path,
    content_hash,
    printable,
    readable,
    write_depth_png,
    write_disparity_png,
    write_image,
    write_json,
    write_npy,
    write_pfm,
    write_share_png,
    write_text,
)
from ea_psmnet.geometry import PointCloud
from ea_psmnet.inference.outputs import preview
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.records import read_record
from ea_psmnet.tables import check_choice

PairRecord = dict[str, dict[str, str]]
"""`path` and `sha256` of the `left` and the `right` image, and optionally the `settings` of the
prediction, the `outputs` with these settings (`written`, or `empty` for a cloud without points),
and the `video` that the files of a frame `serves`."""


@dataclass(frozen=True)
class Prediction:
    """The content of the files: a result, and the cloud made of it."""

    result: StereoResult
    cloud: PointCloud | None = None
    """None if no cloud is written."""
    name: str = ""
    """Title of pictures."""
    beside: bool = True
    """Whether the preview shows the left image as well."""
    colours: tuple[float, float] | None = None
    """Disparities of the first and the last colour of the preview; None for those of the pair."""


@dataclass(frozen=True)
class Output:
    """One kind of output: its files, and the function that writes them."""

    endings: tuple[str, ...]
    """Ends of the files' names, after the name of the prediction."""
    write: Callable[[Sequence[Path], Prediction], None]
    """Writes to paths in the order of `endings`; raises a ValueError if the result lacks something
    that this output needs."""
    metric: bool = False
    """Whether it needs a calibration."""


def _write_disparity(paths: Sequence[Path], prediction: Prediction) -> None:
    pfm, png = paths
    write_pfm(pfm, prediction.result.disparity)
    write_disparity_png(png, prediction.result.disparity)


def _write_preview(paths: Sequence[Path], prediction: Prediction) -> None:
    result = prediction.result
    picture = preview(
        result.image,
        result.disparity,
        result.confidence,
        name=prediction.name,
        beside=prediction.beside,
        colours=prediction.colours,
    )
    write_image(paths[0], picture)


def _write_depth(paths: Sequence[Path], prediction: Prediction) -> None:
    png, pfm, npy = paths
    depth = prediction.result.depth
    write_depth_png(png, depth)
    write_pfm(pfm, np.where(np.isnan(depth), np.float32(np.inf), depth))
    write_npy(npy, depth)


def _write_cloud(paths: Sequence[Path], prediction: Prediction) -> None:
    if prediction.cloud is None:
        raise ValueError("no cloud to write")
    for path in paths:
        prediction.cloud.write(path)


def _write_confidence(paths: Sequence[Path], prediction: Prediction) -> None:
    png, npy = paths
    confidence = prediction.result.confidence
    if confidence is None:
        raise ValueError("no confidence to write")
    write_share_png(png, confidence)
    write_npy(npy, confidence)


def _write_right(paths: Sequence[Path], prediction: Prediction) -> None:
    pfm, png, occluded = paths
    right = prediction.result.right
    if right is None:
        raise ValueError("no disparity of the right view to write")
    write_pfm(pfm, right)
    write_disparity_png(png, right)
    write_share_png(occluded, prediction.result.occluded)


def _write_calibration(paths: Sequence[Path], prediction: Prediction) -> None:
    calibration = prediction.result.calibration
    if calibration is None:
        raise ValueError("no calibration to write")
    write_text(paths[0], calibration.as_middlebury())


def _write_image(paths: Sequence[Path], prediction: Prediction) -> None:
    write_image(paths[0], prediction.result.image)


OUTPUTS = {
    "disparity": Output(("_disparity.pfm", "_disparity.png"), _write_disparity),
    "preview": Output(("_preview.png",), _write_preview),
    "depth": Output(("_depth.png", "_depth.pfm", "_depth.npy"), _write_depth, metric=True),
    "cloud": Output(("_cloud.ply", "_cloud.glb"), _write_cloud, metric=True),
    "confidence": Output(("_confidence.png", "_confidence.npy"), _write_confidence),
    "right": Output(("_right.pfm", "_right.png", "_occluded.png"), _write_right),
    "calibration": Output(("_calib.txt",), _write_calibration, metric=True),
    "image": Output(("_image.png",), _write_image),
}
"""All outputs of a prediction, by the name that `--write` takes."""

DEFAULT_OUTPUTS = ("disparity", "preview")

RECORD = "_pair.json"
"""End of the name of the file with the record of a pair."""
_LARGEST_DISPARITY, _LARGEST_DEPTH = 65535 / 256, 65535 / 1000
"""Largest values of the 16-bit PNG files, in pixels and metres."""


def pair_record(left: Path, right: Path) -> PairRecord:
    """Paths and hashes of a pair's images."""
    return {"left": view_record(left), "right": view_record(right)}


def view_record(path: Path) -> dict[str, str]:
    """Path and hash of an image or a video."""
    with readable(path):
        return {"path": printable(path.resolve()), "sha256": content_hash(path)}


def prediction_paths(
    folder: Path, name: str, outputs: Sequence[str] = DEFAULT_OUTPUTS
) -> list[Path]:
    """The files of `write_prediction`, in its order.

    Raises:
        ValueError: There is no such output.
    """
    for output in outputs:
        check_choice("output", output, OUTPUTS)
    endings = [ending for output in dict.fromkeys(outputs) for ending in OUTPUTS[output].endings]
    return [folder / f"{name}{ending}" for ending in (*endings, RECORD)]


def check_unclaimed(folder: Path, name: str, pair: PairRecord) -> None:
    """Raise a FileExistsError if files of that name exist that may belong to another pair.

    Pairs are the same if their images have the same path or content.
    """
    *paths, record = prediction_paths(folder, name, tuple(OUTPUTS))
    inputs = {view["path"] for side, view in pair.items() if side in ("left", "right")}
    there = [
        path
        for path in (*paths, record)
        if path.exists() and printable(path.resolve()) not in inputs
    ]
    if there and not is_same_pair(pair, _known(record)):
        raise FileExistsError(
            f"{there[0]}: exists and is not of this pair: give another --name or --out, or --force "
            "to overwrite it"
        )


def write_prediction(
    folder: Path,
    name: str,
    result: StereoResult,
    pair: PairRecord,
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
    cloud: Callable[[StereoResult], PointCloud] = StereoResult.points,
    *,
    beside: bool = True,
    colours: tuple[float, float] | None = None,
) -> list[Path]:
    """Write a prediction's outputs, and the record of its pair.

    The files appear once all of them are complete. Warnings report disparities and depths that are
    too large for their PNG, a cloud without points, which is left out unless it is the only output,
    and results of another pair under this name that remain.

    Args:
        folder: The folder to write to; it is created if necessary.
        name: Name of the pair, with which all files begin.
        result: The prediction.
        pair: The `pair_record` of the images.
        outputs: Keys of `OUTPUTS`.
        cloud: Function that makes the point cloud.
        beside: Whether the preview shows the left image as well.
        colours: Disparities of the first and the last colour of the preview.

    Returns:
        The paths, as in `prediction_paths`.

    Raises:
        OSError: A file cannot be written.
        ValueError: Image and disparity differ in size, there is no such output, or the result lacks
            something that an output needs.
    """
    size, disparity = result.image.shape[:2], result.disparity
    made, empty = cloud(result) if "cloud" in outputs else None, {}
    if made is not None and not len(made) and set(outputs) != {"cloud"}:
        warnings.warn(
            f"{name}: no cloud is written, as no point is left: are its limits too narrow?",
            stacklevel=2,
        )
        empty, outputs = {"cloud": "empty"}, [output for output in outputs if output != "cloud"]
    prediction = Prediction(result, made, name, beside, colours)
    if size != disparity.shape:
        raise ValueError(f"{name}: image {size} and disparity {disparity.shape} differ")
    paths = prediction_paths(folder, name, outputs)
    earlier = _known(paths[-1])
    others = [] if is_same_pair(pair, earlier) else _others(folder, name, paths)
    kept = earlier.get("outputs", {}) if _is_alike(pair, earlier) else {}
    pair = pair | {"outputs": kept | dict.fromkeys(outputs, "written") | empty}
    with ExitStack() as stack:  # left in reverse order: the record appears last
        record, *waiting = map(stack.enter_context, map(atomic_path, (paths[-1], *paths[:-1])))
        for output in map(OUTPUTS.__getitem__, dict.fromkeys(outputs)):
            own, waiting = waiting[: len(output.endings)], waiting[len(output.endings) :]
            output.write(own, prediction)
        write_json(record, pair)
    if others:
        warnings.warn(
            f"{others[0]}: belongs to another pair; files that were not rewritten: {len(others)}",
            stacklevel=2,
        )
    if "disparity" in outputs:
        _warn_of_large(folder / f"{name}_disparity.png", result.disparity, _LARGEST_DISPARITY)
    if "depth" in outputs:
        _warn_of_large(folder / f"{name}_depth.png", result.depth, _LARGEST_DEPTH)
    return paths


def _others(folder: Path, name: str, written: Sequence[Path]) -> list[Path]:
    """Results under this name, of the pair that its record names, that are not overwritten."""
    *paths, record = prediction_paths(folder, name, tuple(OUTPUTS))
    if not record.exists():
        return []
    return [path for path in paths if path not in written and path.exists()]


def _warn_of_large(png: Path, values: NDArray[np.floating], most: float) -> None:
    over = int(np.count_nonzero(values > most))
    if over:
        limit = int(100 * most) / 100
        warnings.warn(
            f"{png}: {over:,} pixels ({over / values.size:.1%}) exceed {limit}, the largest value "
            f"that 16 bits hold, and are unknown in it; {png.stem}.pfm has them",
            stacklevel=3,
        )


def _known(path: Path) -> PairRecord:
    """A record; empty if it is missing or damaged."""
    try:
        return read_record(path, PairRecord)
    except (OSError, ValueError):
        return {}


def is_same_pair(pair: PairRecord, known: PairRecord) -> bool:
    """Whether each image has the same path or content in both records."""
    return all(
        any(known.get(side, {}).get(key) == value for key, value in pair[side].items())
        for side in ("left", "right")
    )


def serves_video(record: Path) -> bool:
    """Whether the files of a frame were written for a video alone, perhaps by an earlier run."""
    return "serves" in _known(record)


def written_before(folder: Path, name: str, pair: PairRecord, outputs: Sequence[str]) -> list[Path]:
    """The files of a prediction if all are there, of the same content and settings; or none."""
    known = _known(prediction_paths(folder, name, outputs)[-1])
    if "disparity" in outputs and "serves" in known and "serves" not in pair:
        return []  # it would be deleted with that video
    written = known.get("outputs", {})
    if not (_is_alike(pair, known) and set(outputs) <= written.keys()):
        return []
    outputs = [output for output in outputs if written[output] != "empty"]
    paths = prediction_paths(folder, name, outputs)
    return paths if all(path.is_file() for path in paths) else []


def _is_alike(pair: PairRecord, known: PairRecord) -> bool:
    """Whether both records are of images of the same content, and of the same settings."""
    return known.get("settings") == pair.get("settings") and all(
        known.get(side, {}).get("sha256") == pair[side]["sha256"] for side in ("left", "right")
    )
