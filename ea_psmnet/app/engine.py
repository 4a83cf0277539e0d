"""Predictions of the page: one at a time, with results in a folder that is removed at the end."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from ea_psmnet.calibration import Calibration, RawCalibration
from ea_psmnet.calibration_files import read_calibration
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.files import write_image
from ea_psmnet.inference.confidence import CARD_KEYS
from ea_psmnet.inference.inputs import PairSource
from ea_psmnet.inference.many import Work, predict_many
from ea_psmnet.inference.matcher import DEFAULT, StereoMatcher
from ea_psmnet.inference.outputs import colour_range
from ea_psmnet.inference.pair_prediction import predict_pair
from ea_psmnet.inference.pairs import Pair, calibrated_pair
from ea_psmnet.inference.prediction_files import write_prediction
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.machine import Precision
from ea_psmnet.models.weights import BUNDLED

_KEPT = 16
"""Results that are kept; older ones are removed."""
_MATCHERS = 2
"""Networks that are held in memory."""
_EXAMPLE = (320, 512)
"""Height and width of a rendered example."""


def weights() -> list[str]:
    """Names of the bundled weights, the default first."""
    names = sorted(path.stem for path in BUNDLED.glob("*.safetensors"))
    return sorted(names, key=lambda name: name != DEFAULT)


@dataclass(frozen=True)
class Order:
    """What a user asks for."""

    source: PairSource
    weights: str = DEFAULT
    precision: Precision = "auto"
    two_scales: bool = False
    """Whether the pair is matched again at twice its size: see `StereoMatcher`."""
    calib: Sequence[Path] = ()
    """Calibration files."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Calibration without a file: `focal` in pixels and `baseline` in metres; optional `cx`, `cy`
    and `doffs` in pixels."""


class Engine:
    """Predicts orders, one at a time, and keeps the newest results.

    It is a context manager: at its end the prediction that runs is finished, later ones are refused
    and all files are removed.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ea_psmnet-app-"))
        self._lock = threading.Lock()
        self._ended = False
        self._results: OrderedDict[str, Path] = OrderedDict()
        self._matchers: OrderedDict[tuple[str, Precision], StereoMatcher] = OrderedDict()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with self._lock:
            shutil.rmtree(self._folder, ignore_errors=True)

    def example(self, number: int) -> Pair:
        """Render a pair."""
        with self._lock:  # the textures of the renderer are built once
            scenes = SyntheticScenes(
                size=_EXAMPLE, max_disparity=96, split="test", count=number + 1
            )
            scene = scenes[number]
        return scene.left, scene.right

    def file(self, result: str, name: str) -> Path | None:
        """A file of a result; None if there is no such result or file."""
        folder = self._results.get(result)
        path = None if folder is None else folder / name
        return path if path is not None and path.parent == folder and path.is_file() else None

    def predict(self, order: Order) -> dict[str, Any]:
        """Predict a pair and keep the result.

        Returns:
            Plain values for the page.

        Raises:
            ValueError, OSError: The input is wrong; the message is for the user.
        """
        result = uuid4().hex
        folder = self._folder / result
        found: list[StereoResult] = []

        def predict(source: PairSource, pair: Pair) -> StereoResult:
            found.append(self._predict(order, pair))
            return found[-1]

        def write(source: PairSource, pair: Pair, predicted: StereoResult) -> list[Path]:
            return _write(folder, source.name, predicted)

        work = Work(lambda source: [], lambda source: source.read(), predict, write)
        with self._lock:
            if self._ended:
                raise OSError("the server ends: start it again")
            (outcome,) = predict_many([order.source], work)
            if outcome.error is not None:
                shutil.rmtree(folder, ignore_errors=True)
                raise outcome.error
            self._keep(result, folder)
        return {
            "id": result,
            "name": outcome.name,
            "seconds": outcome.seconds,
            "warnings": outcome.warnings,
            "downloads": [path.name for path in outcome.paths],
            **_described(found[0]),
        }

    def _predict(self, order: Order, pair: Pair) -> StereoResult:
        height, width = pair[0].shape[:2]
        given: Calibration | RawCalibration | None = None
        if order.calib and order.numbers:
            raise ValueError("give a calibration file, or focal length and baseline, not both")
        if order.calib:
            given = read_calibration(*order.calib)
        elif order.numbers:
            given = Calibration.from_focal(**order.numbers, height=height, width=width)
        matcher = self._matcher(order.weights, order.precision)
        matcher = matcher.searching(0, matcher.max_disparity, two_scales=order.two_scales)
        sure = CARD_KEYS[order.two_scales] in matcher.card
        return predict_pair(matcher, *calibrated_pair(pair, given), confidence=sure)

    def _matcher(self, name: str, precision: Precision) -> StereoMatcher:
        key = name, precision
        if key not in self._matchers:
            self._matchers[key] = StereoMatcher.load(name, precision=precision)
        self._matchers.move_to_end(key)
        while len(self._matchers) > _MATCHERS:
            self._matchers.popitem(last=False)
        return self._matchers[key]

    def _keep(self, result: str, folder: Path) -> None:
        self._results[result] = folder
        while len(self._results) > _KEPT:
            shutil.rmtree(self._results.popitem(last=False)[1], ignore_errors=True)


def _write(folder: Path, name: str, result: StereoResult) -> list[Path]:
    """Write the downloads, and the arrays that the page draws; return the downloads."""
    outputs = ["disparity", "preview"]
    outputs += ["confidence"] if result.confidence is not None else []
    outputs += ["depth", "cloud"] if result.calibration is not None else []
    record = {side: {"path": name, "sha256": ""} for side in ("left", "right")}
    *downloads, _ = write_prediction(folder, name, result, record, outputs)
    write_image(folder / "left.png", result.image)
    arrays = {"disparity": result.disparity, "confidence": result.confidence}
    for kind, values in arrays.items():
        if values is not None:
            (folder / f"{kind}.f32").write_bytes(values.astype("<f4").tobytes())
    return downloads


def _described(result: StereoResult) -> dict[str, Any]:
    height, width = result.disparity.shape
    camera = result.calibration
    fields = ("f", "fy", "cx", "cy", "baseline", "doffs")
    return {
        "width": width,
        "height": height,
        "range": result.disparity_range(),
        "colours": colour_range(result.disparity),
        "confidence": result.confidence is not None,
        "camera": camera and {name: getattr(camera, name) for name in fields},
    }
