"""Archives of predictions for the servers of KITTI 2012 and 2015, Middlebury v3 and ETH3D.

| benchmark | images | files in the archive |
|---|---|---|
| kitti2012 | `testing/colored_0/000000_10.png` | `000000_10.png` |
| kitti2015 | `testing/image_2/000000_10.png` | `disp_0/000000_10.png` |
| middlebury | `testH/SCENE/im0.png` | `testH/SCENE/disp0METHOD.pfm`, `timeMETHOD.txt` |
| eth3d | `two_view_testing/SCENE/im0.png` | `low_res_two_view/SCENE.pfm`, `SCENE.txt` |

KITTI's maps are PNG of 16 bits with 256 steps a pixel; its pages ask for the run time in a form.
Middlebury and ETH3D evaluate their training pairs, too, from the same archive.

Sources: the development kits of KITTI 2012 and 2015, upload-format.html of Middlebury's submission
page, and the documentation of eth3d.net.
"""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.names import BenchmarkName, Resolution
from ea_psmnet.datasets.templates import home
from ea_psmnet.files import atomic_path, write_disparity_png, write_pfm
from ea_psmnet.inference.pairs import Pair, as_pair
from ea_psmnet.progress import Progress
from ea_psmnet.store import Store, digest, stamp
from ea_psmnet.tables import check_choice

_METHOD = re.compile(r"[A-Za-z0-9_+-]{1,32}")


class Entry(NamedTuple):
    """A pair of a benchmark, and the names of its files in the archive."""

    left: Path
    right: Path
    map: str
    """Disparity map."""
    time: str | None
    """Text file with the run time; None if the server expects none."""


@dataclass(frozen=True)
class Benchmark:
    """How a server names its pairs and what it expects of each."""

    find: Callable[[Path, Resolution | None, str], list[Entry]]
    """Function from the root, the resolution and the name of the method to the pairs."""
    pairs: int
    """Number of pairs in a complete submission."""
    layout: str
    """Left images below the root, for an error message."""
    time_text: str = "{:.3f}"
    """Format of the file with the run time in seconds."""


@dataclass(frozen=True)
class _Result:
    """Record of a finished pair."""

    seconds: float


def find_pairs(
    name: BenchmarkName, root: Path, *, method: str, resolution: Resolution | None = None
) -> list[Entry]:
    """Find the pairs of a benchmark.

    Args:
        name: The benchmark.
        root: Folder with the server's images, unpacked; see the module.
        method: Name of the method, which Middlebury's file names contain.
        resolution: Middlebury's full, half or quarter size; required if several exist.

    Raises:
        FileNotFoundError: The folder holds no pairs of this benchmark, or a right image is missing.
        ValueError: An argument is not one of those listed.
    """
    check_choice("benchmark", name, get_args(BenchmarkName))
    if not _METHOD.fullmatch(method):
        raise ValueError(f"method '{method}': use up to 32 letters, digits, and any of _ + -")
    entries = BENCHMARKS[name].find(root, resolution, method)
    if not entries:
        raise FileNotFoundError(f"{root}: no images of {name}: expected {BENCHMARKS[name].layout}")
    for entry in entries:
        if not entry.right.is_file():
            raise FileNotFoundError(f"{entry.right}: missing; its left image is {entry.left}")
    return entries


def write_submission(
    out: Path,
    name: BenchmarkName,
    entries: list[Entry],
    predict: Callable[..., NDArray[np.float32]],
    settings: Mapping[str, Any],
) -> float:
    """Predict the pairs of a benchmark and write the archive to upload.

    Finished pairs lie in `OUT.parts`, so that the same call continues after an interruption. Each
    pair's run time is that of `predict`; one call for the first pair, which is not timed, precedes
    them.

    Args:
        out: The archive to write, `.zip`.
        name: The benchmark.
        entries: See `find_pairs`.
        predict: Function from left and right image, (H, W, 3) uint8 RGB, to disparity (H, W).
        settings: Everything that the disparity depends on; parts of other settings are refused.

    Returns:
        The mean run time of a pair in seconds.

    Raises:
        ValueError: `OUT.parts` holds pairs of other settings, or an image is not a picture.
        OSError: A file cannot be read or written.
    """
    parts = out.with_name(f"{out.name}.parts")
    store = Store(parts, {"benchmark": name, **settings})
    maps = parts / "maps"
    records = {
        entry: f"{digest(entry.map)}{stamp((entry.left, entry.right))}.json" for entry in entries
    }
    read = partial(store.read, kind=_Result, remedy=f"damaged: delete {parts} to begin anew")
    done = {entry: result for entry, file in records.items() if (result := read(file))}
    todo = [entry for entry in entries if entry not in done]
    if todo:
        predict(*_pair(todo[0]))
    for entry in Progress(todo, unit="pair", initial=len(done), total=len(entries)):
        pair = _pair(entry)
        started = time.perf_counter()
        disparity = predict(*pair)
        done[entry] = _Result(time.perf_counter() - started)
        write = write_disparity_png if entry.map.endswith(".png") else write_pfm
        write(maps / entry.map, disparity)
        store.write(records[entry], {"seconds": done[entry].seconds})
    with atomic_path(out) as temporary:
        _pack(temporary, maps, {entry: done[entry].seconds for entry in entries}, name)
    shutil.rmtree(maps)
    store.clear()
    return sum(result.seconds for result in done.values()) / len(done)


def _pack(archive: Path, maps: Path, seconds: Mapping[Entry, float], name: BenchmarkName) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, taken in seconds.items():
            file.write(maps / entry.map, entry.map)
            if entry.time is not None:
                file.writestr(entry.time, BENCHMARKS[name].time_text.format(taken) + "\n")


def _pair(entry: Entry) -> Pair:
    try:
        return as_pair((entry.left, entry.right))
    except ValueError as error:
        named = str(entry.left.parent) in str(error)
        raise ValueError(str(error) if named else f"{entry.left}: {error}") from None


# Layouts ------------------------------------------------------------------------------------------


def _kitti(
    cameras: tuple[tuple[str, str], ...], folder: str, root: Path, _: Resolution | None, __: str
) -> list[Entry]:
    base = root if root.name == "testing" else root / "testing"
    left, right = next((pair for pair in cameras if (base / pair[0]).is_dir()), cameras[0])
    return [
        Entry(image, base / right / image.name, f"{folder}{image.name}", None)
        for image in sorted((base / left).glob("*_10.png"))
    ]


def stated_disparities(entries: Sequence[Entry]) -> int:
    """Largest number of disparities that a calibration beside the images states; 0 if none does."""
    files = {entry.left.with_name("calib.txt") for entry in entries}
    texts = (file.read_text(errors="replace") for file in files if file.is_file())
    stated = (re.search(r"^\s*ndisp\s*=\s*(\d+)", text, re.MULTILINE) for text in texts)
    return max((int(found[1]) for found in stated if found), default=0)


def _middlebury(root: Path, resolution: Resolution | None, method: str) -> list[Entry]:
    splits = [f"{split}{size}" for split in ("training", "test") for size in get_args(Resolution)]
    root = home(root, ("MiddEval3",), *splits)
    there = [size for size in get_args(Resolution) if any(root.glob(f"t*{size}/*/im0.png"))]
    if resolution is None:
        if len(there) > 1:
            raise ValueError(f"{root}: has the sizes {', '.join(there)}: choose a --resolution")
        resolution = there[0] if there else "H"
    check_choice("resolution", resolution, get_args(Resolution))
    return [
        Entry(
            image,
            image.with_name("im1.png"),
            f"{split}{resolution}/{image.parent.name}/disp0{method}.pfm",
            f"{split}{resolution}/{image.parent.name}/time{method}.txt",
        )
        for split in ("training", "test")
        for image in sorted((root / f"{split}{resolution}").glob("*/im0.png"))
    ]


def _eth3d(root: Path, _: Resolution | None, __: str) -> list[Entry]:
    entries = []
    for split in ("training", "testing"):
        for image in sorted((root / f"two_view_{split}").glob("*/im0.png")):
            name = f"low_res_two_view/{image.parent.name}"
            entries.append(Entry(image, image.with_name("im1.png"), f"{name}.pfm", f"{name}.txt"))
    return entries


_GREY, _COLOUR = ("image_0", "image_1"), ("colored_0", "colored_1")

BENCHMARKS: dict[BenchmarkName, Benchmark] = {
    "kitti2012": Benchmark(
        partial(_kitti, (_COLOUR, _GREY), ""), 195, "testing/{colored_0,image_0}/*_10.png"
    ),
    "kitti2015": Benchmark(
        partial(_kitti, (("image_2", "image_3"),), "disp_0/"), 200, "testing/image_2/*_10.png"
    ),
    "middlebury": Benchmark(_middlebury, 30, "{training,test}{F,H,Q}/SCENE/im0.png"),
    "eth3d": Benchmark(_eth3d, 47, "two_view_{training,testing}/SCENE/im0.png", "runtime {:.3f}"),
}
"""The benchmarks by name."""
