"""Install size and start-up time with and without torch.

    .venv/bin/python scripts/benchmarks/export.py [--rounds N] [--out docs/results/export]

Run nothing beside it. A start-up is that of a process of its own, from before it is started to its
first disparity; every round measures both ways in turn, and figures are medians over the rounds.
Sizes are those of the installed packages and of all that they need, as pip installed them here.
"""

from __future__ import annotations

from benchmarking import ROOT, machine, run, write_results

# isort: split
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from ea_psmnet.commands.export import export
from ea_psmnet.tables import format_bytes, markdown_table

SIZE = (256, 512)
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
_NO_EXTRA = {"extra": ""}
_PICTURES = ("matplotlib", "numpy", "opencv-python", "pillow", "pydantic", "tqdm", "tyro")


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=Path("docs/results/export"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ea-light.onnx"
        export(out=file, size=SIZE, pairs=1)
        starts = measured_starts(file, arguments.rounds)
    sizes = {name: installed_bytes(packages) for name, packages in _installs().items()}
    text = _markdown(sizes, starts)
    record = {"machine": machine(), "size": SIZE, "bytes": sizes, "seconds": starts}
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


def _markdown(sizes: dict[str, int], starts: dict[str, dict[str, float]]) -> str:
    installs = [{"install": name, "size": format_bytes(size)} for name, size in sizes.items()]
    rows = [
        {"way": name, "network loaded, s": s["loaded"], "first disparity, s": s["first"]}
        for name, s in starts.items()
    ]
    height, width = SIZE
    return "\n\n".join(
        [
            "# Prediction with and without torch",
            f"Start of a process to the first disparity of a {height} x {width} pair by "
            f"`ea-light` at 192 disparities, and installed packages. {machine()}.",
            markdown_table(rows),
            markdown_table(installs),
            "Written by `scripts/benchmarks/export.py`.\n",
        ]
    )


if __name__ == "__main__":
    run(main)
