"""Install size and start-up time with and without torch, and what int8 does to the errors.

    .venv/bin/python scripts/benchmarks/export.py [--rounds N] [--pairs FOLDER] [--out FILE]

Run nothing beside it. A start-up is that of a process of its own, from before it is started to its
first disparity; every round measures both ways in turn, and figures are medians over the rounds.
Sizes are those of the installed packages and of all that they need, as pip installed them here.
With a folder of pairs, ONNX Runtime's static quantisation is applied to the 2D convolutions, with
ranges from rendered scenes, and the file is run beside the one in float32.
"""

from __future__ import annotations

from benchmarking import ROOT, machine, run, write_results

# isort: split
import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packaging.requirements import Requirement

from ea_psmnet.commands.export import export
from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.inference.exported import INPUTS, ExportedMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.tables import format_bytes, markdown_table

SIZE = (256, 512)
LIMIT = 192
_WAYS = {
    "torch": (
        "from ea_psmnet import StereoMatcher\n"
        "matcher = StereoMatcher.load('ea-light', device='cpu')\n"
        "predict = lambda *pair: matcher(*pair).disparity\n"
    ),
    "ONNX Runtime": (
        "from ea_psmnet.inference.exported import ExportedMatcher\n"
        "predict = ExportedMatcher.load({file!r}).disparity\n"
    ),
}
_PREDICTION = (
    "import sys, time\n"
    "import numpy as np\n"
    "loaded = time.time()\n"
    "image = np.random.default_rng(0).integers(0, 256, (*{size}, 3), dtype=np.uint8)\n"
    "predict(image, image)\n"
    "print(loaded, time.time(), 'torch' in sys.modules)\n"
)
_RANGES = (384, 640)
"""Size of the scenes whose activations give the ranges of int8."""
_SCENES = 8
_KEPT = (0, 3, 6)
"""Numbers of 2D convolutions, from the first on, that stay in float32."""
_NO_EXTRA = {"extra": ""}
_PICTURES = ("matplotlib", "numpy", "opencv-python", "pillow", "psutil", "pydantic", "tqdm", "tyro")


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--pairs", type=Path, help="folder of pairs with ground truth")
    parser.add_argument("--out", type=Path, default=Path("docs/results/export"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ea-light.onnx"
        export(out=file, size=SIZE, pairs=1)
        starts = measured_starts(file, arguments.rounds)
        export(out=file, pairs=1)
        rounded = measured_int8(file, arguments.pairs) if arguments.pairs else []
    sizes = {name: installed_bytes(packages) for name, packages in _installs().items()}
    text = _markdown(sizes, starts, rounded)
    record = {"machine": machine(), "size": SIZE, "bytes": sizes, "seconds": starts}
    record["int8"] = rounded
    write_results(arguments.out, record, text)
    print(text)


def _installs() -> dict[str, list[str]]:
    """Packages that each way needs by itself."""
    required = (ROOT / "requirements.txt").read_text().split()
    return {
        "torch (requirements.txt)": [Requirement(line).name for line in required],
        "predict with an exported file": ["onnxruntime", *_PICTURES],
        "ExportedMatcher.disparity": ["numpy", "onnxruntime"],
    }


def installed_bytes(packages: Iterable[str]) -> int:
    """Size of installed packages and of everything that they require, in bytes.

    Raises:
        ValueError: A named package is not installed.
    """
    waiting, seen, total = list(packages), set(), 0
    named = set(waiting)
    while waiting:
        name = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            if name in named:
                raise ValueError(f"{name} is not installed: pip install {name}") from None
            continue  # required on other platforms only
        paths = (Path(str(file.locate())) for file in found.files or ())
        total += sum(path.stat().st_size for path in paths if path.is_file())
        needed = (Requirement(text) for text in found.requires or ())
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate(_NO_EXTRA)]
    return total


def measured_starts(file: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds until the network is loaded and until the first disparity, by way."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in _WAYS}
    for number in range(rounds + 1):
        for name in _WAYS:
            seconds = _start(name, file)
            if number:  # the first one reads files from the disk
                taken[name].append(seconds)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return {
        name: {"loaded": statistics.median(loaded), "first": statistics.median(first)}
        for name, seconds in taken.items()
        for loaded, first in [zip(*seconds, strict=True)]
    }


def _start(name: str, file: Path) -> tuple[float, float]:
    program = _WAYS[name].format(file=str(file)) + _PREDICTION.format(size=SIZE)
    start = time.time()
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    loaded, predicted, torch = process.stdout.split()
    assert (torch == "True") == (name == "torch")
    return float(loaded) - start, float(predicted) - start


def measured_int8(file: Path, folder: Path) -> list[dict[str, str | float]]:
    """Errors and seconds of a file for any size in float32, and with 2D convolutions in int8.

    Args:
        file: The file in float32.
        folder: Pairs with ground truth; means are over the pairs.
    """
    matchers = {"float32": ExportedMatcher.load(file)}
    for kept in _KEPT:
        rounded = file.with_name(f"int8-{kept}.onnx")
        quantise(file, rounded, kept)
        which = f"the first {kept} in float32" if kept else "all 2D convolutions"
        matchers[f"int8, {which}"] = ExportedMatcher.load(rounded)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in matchers}
    pairs = build_dataset("folder", folder, split="test")
    for sample in (pairs[index] for index in range(len(pairs))):
        for name, matcher in matchers.items():
            matcher.disparity(sample.left, sample.right)  # allocates for the size
            started = time.perf_counter()
            disparity = matcher.disparity(sample.left, sample.right)
            seconds = time.perf_counter() - started
            errors = DisparityErrors.measure(disparity, sample.disparity, sample.counted(LIMIT))
            found[name].append((errors.epe, errors.figures()["bad-2"], seconds))
    return [
        {"numbers": name, "EPE, px": epe, "bad-2, %": bad, "seconds a pair": seconds}
        for name, values in found.items()
        for epe, bad, seconds in [np.mean(values, axis=0).tolist()]
    ]


def quantise(file: Path, out: Path, kept: int) -> None:
    """Write an exported network with 2D convolutions in int8, weights by channel.

    Args:
        file: The network in float32.
        out: The file to write.
        kept: Number of 2D convolutions, from the first on, that stay in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    graph = onnx.load(file).graph
    sides = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    flat = [node.name for node in nodes if sides.get(node.input[1]) == 4]
    logging.disable(logging.WARNING)  # it advises an optimisation that exported graphs have had
    try:
        quantize_static(
            *(file, out, _Ranges()),
            nodes_to_quantize=flat[kept:],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


class _Ranges:
    """Rendered scenes as the inputs of an exported network, one after the other."""

    def __init__(self) -> None:
        self._scenes: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: _input(getattr(scene, name)) for name in INPUTS}
            for scene in SyntheticScenes(split="train", size=_RANGES, count=_SCENES)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """See `onnxruntime.quantization.CalibrationDataReader`."""
        return next(self._scenes, None)


def _input(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(image.transpose(2, 0, 1)[None] / 255, np.float32)


def _markdown(
    sizes: dict[str, int],
    starts: dict[str, dict[str, float]],
    rounded: list[dict[str, str | float]],
) -> str:
    installs = [{"install": name, "size": format_bytes(size)} for name, size in sizes.items()]
    rows = [
        {"way": name, "network loaded, s": s["loaded"], "first disparity, s": s["first"]}
        for name, s in starts.items()
    ]
    height, width = SIZE
    parts = [
        "# Exported networks: start-up, install size, int8",
        f"Start of a process to the first disparity of a {height} x {width} pair by "
        f"`ea-light` at 192 disparities, and installed packages. {machine()}.",
        markdown_table(rows),
        markdown_table(installs),
    ]
    if rounded:
        parts += [
            "ONNX Runtime with the 2D convolutions in int8 (3D ones stay in float32), all threads, "
            "means over the pairs, pixels with known disparity below "
            f"{LIMIT}:",
            markdown_table(rounded),
        ]
    return "\n\n".join([*parts, "Written by `scripts/benchmarks/export.py`.\n"])


if __name__ == "__main__":
    run(main)
