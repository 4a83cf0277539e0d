"""`ExportedMatcher`: predicts with an exported network, without torch.

`ExportedMatcher.disparity` needs only NumPy and ONNX Runtime (or OpenVINO). A call, like one of
`StereoMatcher`, takes other kinds of images and returns a `StereoResult`; it also needs OpenCV and
Pillow.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ea_psmnet.calibration import Calibration, RawCalibration
    from ea_psmnet.inference.pairs import ImageLike
    from ea_psmnet.inference.result import StereoResult

KEY = "ea_psmnet"
"""Name of the metadata of an exported file: the JSON text of an `ExportRecord`."""

INPUTS, OUTPUT = ("left", "right"), "disparity"
"""Names in the graph: images (1, 3, H, W) of float32 RGB from 0 to 1, and disparity (1, H, W)."""

_BORDERS = {"constant": "constant", "replicate": "edge"}
"""Modes of `numpy.pad` by those of torch."""

Infer = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class ExportRecord:
    """What an exported file states about itself."""

    config: Mapping[str, Any]
    """Values of the network's `PSMNetConfig`."""
    max_disparity: int
    """D: disparities 0 to D - 1 pixels are searched."""
    mean: Sequence[float]
    """Mean colour by which the graph normalises images."""
    std: Sequence[float]
    """Deviation of colours by which the graph normalises images."""
    multiple: int
    """Sides of the images are padded to multiples of this number, at the top and right."""
    border: str
    """Padding: `constant` is the mean colour, `replicate` repeats the border."""
    size: Sequence[int] | None
    """Height and width of the images; None for any."""
    precision: str
    """float32, float16 or bfloat16."""
    weights: str
    """Name of the weights."""
    sha256: str
    """SHA-256 of the file of the weights."""
    version: str
    """Version of the program that wrote the file."""

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self), sort_keys=True)


Opened = tuple[str | None, Callable[[ExportRecord], Infer]]
"""Metadata of an exported file, and a function that prepares it to run."""


class ExportedMatcher:
    """Predicts the disparity of rectified pairs with an exported network.

    Args:
        infer: Function of two images (1, 3, H, W) to disparity (1, H, W).
        record: What the file states.

    Example:
        >>> matcher = ExportedMatcher.load("ea-light.onnx")
        >>> matcher.disparity(left, right).shape == left.shape[:2]
        True
    """

    def __init__(self, infer: Infer, record: ExportRecord) -> None:
        self.record = record
        self.max_disparity = record.max_disparity
        self._infer = infer

    @classmethod
    def load(
        cls, path: Path | str, *, weights: Path | None = None, threads: int | None = None
    ) -> ExportedMatcher:
        """Read a file that the command `export` wrote.

        Args:
            path: An ONNX file (.onnx) or an OpenVINO file (.xml).
            weights: Weights of an OpenVINO file; default: the file beside it with the suffix .bin.
            threads: Number of CPU threads; None for the runtime's default.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file was not written by `export`, or its runtime is not installed.
        """
        path = Path(path)
        weights = weights or path.with_suffix(".bin")
        if path.suffix not in EXPORTED_SUFFIXES:
            raise ValueError(f"{path}: exported networks end in {' or '.join(EXPORTED_SUFFIXES)}")
        for file in (path, weights)[: 1 + (path.suffix == ".xml")]:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
        stated, prepare = _OPENERS[path.suffix](path, weights, threads)
        record = _record(path, stated)
        return cls(prepare(record), record)

    def __call__(
        self,
        left: ImageLike,
        right: ImageLike,
        *,
        calibration: Calibration | RawCalibration | None = None,
        confidence: bool = False,
        right_view: bool = False,
    ) -> StereoResult:
        """Predict the disparity of the left image; arguments are those of `StereoMatcher`.

        Raises:
            ValueError: See `disparity`; or the images differ in size or are not pictures; or
                confidence is asked for, which the file cannot compute.
            FileNotFoundError, OSError: An image file does not exist, or cannot be read.
            TypeError: An argument has the wrong type.
        """
        from ea_psmnet.inference.pairs import as_pair, calibrated_pair  # late: need OpenCV
        from ea_psmnet.inference.result import StereoResult

        if confidence:
            raise ValueError("an exported network computes disparity alone, without confidence")
        pair, fitting = calibrated_pair(as_pair((left, right)), calibration)
        mirrored = (view[:, ::-1].copy() for view in reversed(pair))
        right_disparity = self.disparity(*mirrored)[:, ::-1].copy() if right_view else None
        return StereoResult(
            self.disparity(*pair), pair[0], right=right_disparity, calibration=fitting
        )

    def match(
        self,
        pairs: Sequence[tuple[ImageLike, ImageLike]],
        *,
        confidence: bool = False,
        right_view: bool = False,
    ) -> list[StereoResult]:
        """Predict several pairs, one after the other; arguments as for a single call."""
        return [self(*pair, confidence=confidence, right_view=right_view) for pair in pairs]

    def searching(self, min_disparity: int, max_disparity: int) -> ExportedMatcher:
        """This matcher; raises a ValueError for another range, as the range is part of the file."""
        if (min_disparity, max_disparity) != (0, self.max_disparity):
            raise ValueError(
                f"an exported network searches 0 to {self.max_disparity}: for another range export "
                "it with --max-disparity, or use the weights"
            )
        return self

    def disparity(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict the disparity of the left image.

        Args:
            left: (H, W, 3) uint8 RGB.
            right: The right image, rectified, of the same size.

        Returns:
            (H, W) in pixels.

        Raises:
            ValueError: The images are not such arrays, are narrower than the range of disparities
                or not of the file's size; or the network computes NaN or infinity.
        """
        for view in (left, right):
            if view.dtype != np.uint8 or view.ndim != 3 or view.shape[2] != 3:
                raise ValueError(f"expected (H, W, 3) of uint8, not {view.shape} of {view.dtype}")
        if left.shape != right.shape:
            raise ValueError(f"the images differ in size: {left.shape[:2]}, {right.shape[:2]}")
        height, width = left.shape[:2]
        self._check_size(height, width)
        found = self._infer(self._to_input(left), self._to_input(right))[0]
        if not np.isfinite(found).all():
            raise ValueError(
                f"the exported network computes NaN or infinity in {self.record.precision}: its "
                "numbers may exceed that type's range; export it in float32"
            )
        # The padding is above and to the right.
        return np.array(found[-height:, :width], np.float32)

    def _check_size(self, height: int, width: int) -> None:
        multiple, size = self.record.multiple, self.record.size
        padded = (height + -height % multiple, width + -width % multiple)
        if size is not None and padded != tuple(size):
            raise ValueError(
                f"the images are {height} x {width} px, padded {padded[0]} x {padded[1]}; this "
                f"file is for {size[0]} x {size[1]}: export one without --size, or for this size"
            )
        if padded[1] < self.max_disparity:
            raise ValueError(
                f"the images are {width} px wide, less than the {self.max_disparity} px that this "
                f"file searches: export one with --max-disparity {padded[1]}"
            )

    def _to_input(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) to (1, 3, H', W') from 0 to 1, padded at the top and right."""
        mean = np.array(self.record.mean, np.float32)
        top, right = (-side % self.record.multiple for side in image.shape[:2])
        # As StereoMatcher computes it: the padding is zero after the mean is subtracted.
        centred = image.astype(np.float32) / np.float32(255) - mean
        widths, mode = ((top, 0), (0, right), (0, 0)), _BORDERS[self.record.border]
        padded: NDArray[np.float32] = np.pad(centred, widths, mode=mode) + mean  # type: ignore[call-overload]
        return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def _record(path: Path, text: str | None) -> ExportRecord:
    if text is None:
        raise ValueError(f"{path}: was not written by the command export: it has no description")
    try:
        record = ExportRecord(**json.loads(text))
        assert record.border in _BORDERS
    except (ValueError, TypeError, AssertionError):
        raise ValueError(f"{path}: its description is damaged, or by another version") from None
    return record


def _required(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{package} is not installed ({error}): run `pip install {package}`"
        ) from None


def _stated_threads() -> int | None:
    """Number of threads that the environment states, as torch reads it."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() and int(stated) > 0 else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _open_onnx(path: Path, _: Path, threads: int | None) -> Opened:
    runtime = _required("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or _stated_threads() or 0  # 0: the default
    try:
        session = runtime.InferenceSession(
            path, options, providers=runtime.get_available_providers()
        )
    except Exception as error:  # of many types, none of them public
        raise ValueError(f"{path}: not readable by ONNX Runtime ({_first_line(error)})") from None

    def infer(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        found = session.run([OUTPUT], dict(zip(INPUTS, (left, right), strict=True)))
        return np.asarray(found[0], np.float32)

    return session.get_modelmeta().custom_metadata_map.get(KEY), lambda record: infer


def _open_openvino(path: Path, weights: Path, threads: int | None) -> Opened:
    core = _required("openvino").Core()
    try:
        model = core.read_model(path, weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: not readable by OpenVINO ({_first_line(error)})") from None
    stated = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None

    def prepared(record: ExportRecord) -> Infer:
        # OpenVINO's own choice is bfloat16 on processors that multiply it.
        hint = "bf16" if record.precision == "bfloat16" else "f32"
        settings = {"INFERENCE_PRECISION_HINT": hint}
        count = threads or _stated_threads()
        settings |= {"INFERENCE_NUM_THREADS": str(count)} if count else {}
        compiled = core.compile_model(model, "CPU", settings)
        return lambda left, right: np.asarray(compiled([left, right])[0], np.float32)

    return stated, prepared


_OPENERS = {".onnx": _open_onnx, ".xml": _open_openvino}

EXPORTED_SUFFIXES = tuple(_OPENERS)
"""Suffixes of the files that `ExportedMatcher.load` reads."""
