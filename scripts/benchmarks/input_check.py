"""How often the input check names a fault that was put into a pair, and how often it is wrong.

    .venv/bin/python scripts/benchmarks/input_check.py --roots FOLDER... [--scenes 40] [--help]

Reads the pairs of every FOLDER (any dataset that is recognised), renders scenes, provokes each
fault in each pair and writes OUT.json and OUT.md.
"""

from __future__ import annotations

from benchmarking import run, write_results

# isort: split

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.inference.alignment import RowAlignment
from ea_psmnet.inference.doctor import Code, Diagnosis, diagnose
from ea_psmnet.inference.pairs import Pair
from ea_psmnet.matches import match_features
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import markdown_table

Image = NDArray[np.uint8]
_FULL_RANGE = 192
_SHORT = 0.6
"""Range over the scene's median disparity, where it is exceeded."""


@dataclass(frozen=True)
class Fault:
    """A fault, and how it is put into a pair."""

    code: Code
    provoke: Callable[[Pair], Pair]


@dataclass(frozen=True)
class Rate:
    """Result for a fault over all pairs."""

    fault: str
    pairs: int
    found: int
    """Pairs of which a finding has the fault's code; for sound pairs, those without findings."""
    wrong: int
    """Pairs with a finding that is not the fault and not of the unchanged pair either."""
    residual: float | None
    """Largest median row offset, in pixels, after `--rectify auto`, where the fault was found."""


def turned(view: Image, degrees: float, down: float = 0) -> Image:
    """Turn an image counter-clockwise about its centre and move it down."""
    height, width = view.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    matrix[1, 2] += down
    warped = cv2.warpAffine(
        view, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(warped, np.uint8)


def darker(view: Image, factor: float) -> Image:
    """Expose an image less."""
    return np.rint(view * factor).astype(np.uint8)


def plain(view: Image, seed: int = 0) -> Image:
    """A wall of an image's mean colour, with the noise of a sensor."""
    noise = np.random.default_rng(seed).normal(0, 2, view.shape)
    return np.clip(view.mean((0, 1)) + noise, 0, 255).round().astype(np.uint8)


def recompressed(view: Image) -> Image:
    """An image after lossy compression."""
    _, data = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def misaligned(degrees: float, down: float = 0) -> Fault:
    """The right camera is turned and too high."""
    return Fault("unrectified", lambda pair: (pair[0], turned(pair[1], degrees, down)))


FAULTS = {
    "views swapped": Fault("swapped", lambda pair: (pair[1], pair[0])),
    **{f"right {down:+d} px down": misaligned(0, down) for down in (-3, 3, 8, 25)},
    **{f"right turned {angle:+.1f} degrees": misaligned(angle) for angle in (-0.5, 0.5, 1, 3)},
    "right turned -1.0 degrees and 4 px down": misaligned(-1, 4),
    "right exposure x0.4": Fault("exposure", lambda pair: (pair[0], darker(pair[1], 0.4))),
    "left exposure x0.4": Fault("exposure", lambda pair: (darker(pair[0], 0.4), pair[1])),
    "no texture": Fault("no-texture", lambda pair: (plain(pair[0]), plain(pair[1], seed=1))),
    "no texture in the right": Fault("no-texture", lambda pair: (pair[0], plain(pair[1]))),
    "identical images": Fault("identical", lambda pair: (pair[0], pair[0].copy())),
    "identical but for compression": Fault(
        "identical", lambda pair: (pair[0], recompressed(pair[0]))
    ),
}
"""Faults of one pair, by name."""

UNRELATED, BEYOND, SOUND = "unrelated images", "range exceeded", "unchanged"


def unrelated(pair: Pair, other: Pair) -> Pair:
    """The left image of a pair, and another pair's right one, at the same size."""
    height, width = pair[0].shape[:2]
    return pair[0], np.asarray(cv2.resize(other[1], (width, height)), np.uint8)


def short_range(sample: StereoSample) -> float:
    """A range of disparities that most of a scene exceeds."""
    return _SHORT * float(np.median(sample.disparity[sample.valid]))


def residual(pair: Pair, correction: RowAlignment) -> float:
    """Median row offset of matches in pixels after the correction."""
    views = [cv2.cvtColor(v, cv2.COLOR_RGB2GRAY) for v in (pair[0], correction.apply(pair[1]))]
    found = match_features(views[0], views[1], 2000)
    return float(np.median(np.abs(found.left - found.right)[:, 1]))


def provoked(samples: Sequence[StereoSample]) -> Iterator[tuple[str, Code, Pair, float]]:
    """Yield name, code, pair and range of every fault in every pair."""
    for number, sample in enumerate(samples):
        pair = sample.left, sample.right
        for name, fault in FAULTS.items():
            yield name, fault.code, fault.provoke(pair), _FULL_RANGE
        other = samples[(number + 1) % len(samples)]
        yield UNRELATED, "unrelated", unrelated(pair, (other.left, other.right)), _FULL_RANGE
        yield BEYOND, "range", pair, short_range(sample)


def rates(samples: Sequence[StereoSample]) -> list[Rate]:
    """Provoke every fault in every pair; findings of unchanged pairs do not count as wrong."""
    sound = [diagnose(sample.left, sample.right, (0, _FULL_RANGE)) for sample in samples]
    quiet = sum(not found.findings for found in sound)
    table = {SOUND: Rate(SOUND, len(samples), quiet, len(samples) - quiet, None)}
    faults = provoked(samples)
    each = len(FAULTS) + 2
    for number, (name, code, pair, reach) in enumerate(tqdm(faults, unit="pair", disable=None)):
        found = diagnose(*pair, (0, reach))
        row = table.setdefault(name, Rate(name, 0, 0, 0, None))
        table[name] = _counted(row, code, pair, found, sound[number // each])
    return list(table.values())


def _counted(row: Rate, code: Code, pair: Pair, found: Diagnosis, sound: Diagnosis) -> Rate:
    left = row.residual
    if code == "unrectified" and found.correction is not None:
        left = max(left or 0, residual(pair, found.correction))
    wrong = set(found.codes) - {code} - set(sound.codes)
    hit = code in found.codes
    return Rate(row.fault, row.pairs + 1, row.found + hit, row.wrong + bool(wrong), left)


def main(
    *,
    roots: tuple[Path, ...] = (),
    scenes: int = 40,
    size: tuple[int, int] = (540, 960),
    out: Path = Path("docs/results/input-check"),
) -> None:
    """Measure the rates.

    Args:
        roots: Datasets whose pairs are used.
        scenes: Number of rendered scenes.
        size: Height and width of the scenes.
        out: Name of the report, without a suffix.
    """
    rows = []
    sets = {f"{root} pairs": list(build_dataset("auto", root)) for root in roots}
    if scenes:
        sets["rendered scenes"] = list(SyntheticScenes(size=size, count=scenes, split="test"))
    for name, samples in sets.items():
        rows += [{"set": name, **asdict(rate)} for rate in rates(samples)]
    write_results(out, {"rates": rows}, _text(rows))


def _text(rows: list[dict[str, object]]) -> str:
    return f"""# Faults that the input check finds

Each fault was put into every pair. *Found*: the check names it; of unchanged pairs, it finds
nothing. *Wrong*: pairs with a finding that is neither the fault nor one of the unchanged pair.
*Residual*: the largest median row offset of a found pair, in pixels, after `--rectify auto`.

{markdown_table(rows)}
"""


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
