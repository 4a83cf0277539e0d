"""How a pair is predicted: the options for it, and the steps from images to a result."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ea_psmnet.commands.options import CalibrationOptions, MatcherOptions

if TYPE_CHECKING:
    from ea_psmnet.calibration import Calibration
    from ea_psmnet.geometry import PointCloud
    from ea_psmnet.inference.exported import ExportedMatcher
    from ea_psmnet.inference.matcher import StereoMatcher
    from ea_psmnet.inference.pairs import Pair
    from ea_psmnet.inference.result import StereoResult

    Prepared = tuple[Pair, Calibration | None]
    """A rectified pair, and its calibration at its size."""


@dataclass(frozen=True)
class PredictionOptions:
    """What is predicted of a pair, and which parts of the result are kept."""

    write: tuple[str, ...] = ("disparity", "preview")
    """What to write besides NAME_pair.json: disparity; preview; depth, in metres as NAME_depth.png
    (16 bits, millimetres), .pfm and .npy; confidence, the probability of an error below 1 pixel, as
    .npy and as .png (8 bits, 255 for 1), and in the preview; right, the right view's disparity, and
    NAME_occluded.png, white where it contradicts the left one's; cloud, a coloured point cloud as
    .ply and .glb; calibration, as Middlebury's calib.txt; image, the left one, rectified."""
    min_confidence: float | None = None
    """Leave pixels below this confidence, from 0 to 1, out of disparity, depth and cloud."""
    min_disparity: int = 0
    """Smallest disparity to search, in pixels; negative for toed-in cameras."""
    search: Annotated[Literal["network", "auto"], tyro.conf.arg(name="range")] = "network"
    """Range of disparities: auto moves or widens the network's range where a coarse pass shows that
    the pair does not fit into it, and reports what exceeds it."""
    scale: float = 1
    """Factor on the size at which the pair is predicted. 0.5 needs less memory and time and doubles
    the range of disparities, with less detail. Results have the original size."""
    memory: str | None = None
    """Memory limit of the program on the device, for example 8GiB; default: the free memory. Pairs
    that need more are predicted in overlapping tiles."""
    rectify: Literal["auto", "off"] = "off"
    """What to do with a pair that is not rectified, besides warning: auto shifts, rotates and
    resizes the right image so that rows match, as far as matched features show."""
    colours: tuple[float, float] | None = None
    """Disparities of the first and the last colour of previews, in pixels, so that one colour is
    one disparity in all of them; default: those of the pair or video."""
    clean: bool = True
    """Leave flying points at depth edges, points that the right image does not show, and points of
    low confidence out of the cloud."""
    min_depth: float = 0
    """Smallest depth in the cloud, in metres."""
    max_depth: float = float("inf")
    """Largest depth in the cloud, in metres."""

    def check(self) -> None:
        """Raise a ValueError if a value is impossible."""
        from ea_psmnet.inference.pairs import check_scale
        from ea_psmnet.tables import check_range

        check_scale(self.scale)
        check_range("min_confidence", self.min_confidence or 0, 0, 1)
        if (
            self.colours is not None
            and not -math.inf < self.colours[0] < self.colours[1] < math.inf
        ):
            raise ValueError(
                "--colours takes two finite disparities, the smaller first, as --colours 0 64"
            )
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"--min-depth {self.min_depth:g} is not below --max-depth {self.max_depth:g}"
            )

    def cloud(self, result: StereoResult) -> PointCloud:
        """Make the point cloud of a result."""
        return result.points(clean=self.clean, min_depth=self.min_depth, max_depth=self.max_depth)


class PairPredictor:
    """Prepares and predicts pairs with one set of options.

    Args:
        what: What is predicted.
        calibration: Calibration of the camera.
        options: The network and its options; it is loaded when the first pair is predicted.

    Raises:
        ValueError: An option is impossible, or a metric output has no calibration.
    """

    def __init__(
        self, what: PredictionOptions, calibration: CalibrationOptions, options: MatcherOptions
    ) -> None:
        from ea_psmnet.inference.prediction_files import OUTPUTS
        from ea_psmnet.tables import check_choice

        what.check()
        for output in what.write:
            check_choice("output", output, OUTPUTS)
        metric = next((output for output in what.write if OUTPUTS[output].metric), None)
        if metric and calibration == CalibrationOptions():
            raise ValueError(f"--write {metric} needs --calib FILE, or --focal and --baseline")
        self.what, self.calibration, self.options = what, calibration, options
        self._told_rectified = False

    @cached_property
    def matcher(self) -> StereoMatcher | ExportedMatcher:
        """The network, loaded at the first use."""
        from ea_psmnet.inference.exported import ExportedMatcher

        what, matcher = self.what, self.options.predictor(self.what.memory)
        sure = what.min_confidence is not None or "confidence" in what.write
        if isinstance(matcher, ExportedMatcher) and (sure or what.search == "auto"):
            raise ValueError(
                "an exported network has neither confidence nor --range auto: they need the weights"
            )
        least = math.floor(what.scale * what.min_disparity)
        return matcher.searching(least, matcher.max_disparity)

    @property
    def settings(self) -> dict[str, str]:
        """Hash of everything that results depend on besides the images."""
        from ea_psmnet.files import content_hash
        from ea_psmnet.store import digest

        what = {k: v for k, v in asdict(self.what).items() if k not in ("write", "memory")}
        network = {k: v for k, v in asdict(self.options).items() if k != "threads"}
        files = [*(self.calibration.calib or ()), *self.options.files()]
        hashes = [content_hash(path) for path in files if path.is_file()]
        return {"sha256": digest(repr((what, asdict(self.calibration), network, hashes)))}

    def prepare(self, views: Pair, left: Path) -> Prepared:
        """Rectify a pair if its calibration is that of unrectified images.

        Args:
            views: Left and right image.
            left: Path of the left image.
        """
        from ea_psmnet.calibration import RawCalibration
        from ea_psmnet.inference.pairs import calibrated_pair

        given = self.calibration.load(left, *views[0].shape[:2])
        if isinstance(given, RawCalibration) and not self._told_rectified:
            self._told_rectified = True
            warnings.warn(
                "the pair was rectified; if it already was, give --raw False", stacklevel=2
            )
        return calibrated_pair(views, given)

    def predict(self, prepared: Prepared) -> StereoResult:
        """Predict a pair; faults that the pair shows are warnings."""
        from ea_psmnet.inference.exported import ExportedMatcher
        from ea_psmnet.inference.pair_prediction import predict_pair

        what, matcher = self.what, self.matcher
        cleaned = what.clean and "cloud" in what.write and not isinstance(matcher, ExportedMatcher)
        result = predict_pair(
            matcher,
            *prepared,
            scale=what.scale,
            min_disparity=what.min_disparity,
            fit_range=what.search == "auto",
            rectify=what.rectify == "auto",
            confidence=what.min_confidence is not None or "confidence" in what.write or cleaned,
            right_view="right" in what.write,
        )
        return result if what.min_confidence is None else result.masked(what.min_confidence)
