"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from ea_psmnet.machine import Precision, use_threads

if TYPE_CHECKING:
    from ea_psmnet.calibration import Calibration, RawCalibration
    from ea_psmnet.inference.exported import ExportedMatcher
    from ea_psmnet.inference.matcher import StereoMatcher


@dataclass(frozen=True)
class CalibrationOptions:
    """Calibration of the camera, for metric outputs."""

    calib: tuple[Path, ...] | None = None
    """Calibration file: Middlebury's or ETH3D's calib.txt, KITTI's, K.txt, OpenCV's YAML or XML, or
    two camera_info files of ROS. With lens distortion or a rotation between the cameras, the pair
    is rectified first."""
    raw: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Whether the images are unrectified; default: if the file says how to rectify them."""
    focal: float | None = None
    """Focal length in pixels of the images, instead of a file."""
    baseline: float | None = None
    """Distance of the cameras in metres; it replaces that of a file."""
    doffs: float | None = None
    """Difference in pixels of the principal points' columns, right minus left; default: 0."""
    cx: float | None = None
    """Column of the left camera's principal point; default: centre of the image."""
    cy: float | None = None
    """Row of the principal point; default: centre of the image."""

    def load(self, left: Path, height: int, width: int) -> Calibration | RawCalibration | None:
        """Calibration of a pair; None if no option gives one.

        Args:
            left: Path of the left image, whose folder tells KITTI's grey cameras (`image_0`) from
                the colour ones.
            height: Height of the images.
            width: Width of the images.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A file has no calibration, or the options contradict each other.
        """
        from ea_psmnet.calibration import Calibration
        from ea_psmnet.calibration_files import read_calibration

        given = {"focal": self.focal, "doffs": self.doffs, "cx": self.cx, "cy": self.cy}
        direct = [f"--{name}" for name, value in given.items() if value is not None]
        if self.calib == ():
            raise ValueError("--calib names no file")
        if self.calib:
            if direct:
                raise ValueError(f"--calib and {direct[0]} exclude each other")
            folders = {folder.name for folder in left.absolute().parents[:2]}  # image_00/data, raw
            grey = not folders.isdisjoint(("image_0", "image_00"))
            read = read_calibration(*self.calib, raw=self.raw, camera=0 if grey else 2)
            return read if self.baseline is None else read.with_baseline(self.baseline)
        if self.raw is not None:
            raise ValueError("--raw goes with --calib, which says how to rectify")
        if self.focal is None and self.baseline is None and not direct:
            return None
        if self.focal is None or self.baseline is None:
            raise ValueError("a calibration needs --calib FILE, or both --focal and --baseline")
        return Calibration.from_focal(
            self.focal,
            self.baseline,
            height=height,
            width=width,
            cx=self.cx,
            cy=self.cy,
            doffs=self.doffs,
        )


@dataclass(frozen=True)
class NetworkOptions:
    """A network and its options."""

    checkpoint: Path | None = None
    """Weights (.safetensors), an original PSMNet file (.tar), a run folder, or the name of bundled
    weights; default: ea-light. predict and evaluate also take exported files (.onnx, .xml)."""
    max_disparity: int | None = None
    """Number of disparities to search, in pixels; default: as in training."""
    align_corners: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Corner alignment of upsampling; true for original checkpoints of torch 0.4 (2018)."""
    peak_reach: int | None = None
    """Average only over this number of levels (4 pixels each) on either side of the most likely
    disparity; learned upsampling then also combines only cells within that distance of the one with
    the largest weight. 0: as in training. Default: the checkpoint's value."""
    attention: bool = True
    """Use the attention of the network; switch it off to see its effect."""
    device: Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:NUMBER}")] = "auto"
    """Device to compute on."""
    precision: Precision = "auto"
    """Precision: exact is float32; fast, like auto, bfloat16 where the device is fast at it."""
    threads: int | None = None
    """Number of CPU threads; default: one per core, or OMP_NUM_THREADS."""

    def load(self, memory: str | None = None) -> StereoMatcher:
        """Load the matcher; for arguments and errors see `StereoMatcher.load`."""
        from ea_psmnet.inference.matcher import StereoMatcher

        use_threads(self.threads)
        return StereoMatcher.load(
            self.checkpoint,
            max_disparity=self.max_disparity,
            align_corners=self.align_corners,
            peak_reach=self.peak_reach,
            attention=self.attention,
            device=self.device,
            precision=self.precision,
            memory=memory,
        )


@dataclass(frozen=True)
class MatcherOptions(NetworkOptions):
    """Network that predicts, and its options."""

    two_scales: bool = False
    """Match every pair again at twice its size. Where both passes nearly agree, the second one
    counts, elsewhere the surer one: sharper edges and fewer errors, at up to nine times the time
    and seven times the memory."""

    def load(self, memory: str | None = None) -> StereoMatcher:
        """See `NetworkOptions.load`."""
        once = super().load(memory)
        return once.searching(once.min_disparity, once.max_disparity, two_scales=self.two_scales)

    def predictor(self, memory: str | None = None) -> StereoMatcher | ExportedMatcher:
        """Load the matcher, or that of an exported file, which needs no torch."""
        from ea_psmnet.inference.exported import ExportedMatcher
        from ea_psmnet.tables import check_range

        if not self._is_exported():
            return self.load(memory)
        given = replace(self, checkpoint=None, threads=None, device="cpu")
        if given != MatcherOptions(device="cpu") or memory or self.device not in ("auto", "cpu"):
            raise ValueError(
                f"{self.checkpoint}: of an exported network only --threads can be set: range, "
                "precision and the like belong to `export`, two scales need the weights"
            )
        if self.threads is not None:
            check_range("threads", self.threads, 1, 1024)
        return ExportedMatcher.load(cast(Path, self.checkpoint), threads=self.threads)

    def _is_exported(self) -> bool:
        from ea_psmnet.inference.exported import EXPORTED_SUFFIXES

        return self.checkpoint is not None and self.checkpoint.suffix in EXPORTED_SUFFIXES

    def files(self) -> list[Path]:
        """Files that the network is read from, with the description that has its confidence map.

        Raises:
            FileNotFoundError: There is no such checkpoint.
        """
        if self._is_exported():
            return [cast(Path, self.checkpoint)]
        from ea_psmnet.inference.matcher import DEFAULT
        from ea_psmnet.models.weights import find_weights

        weights = find_weights(self.checkpoint or DEFAULT)
        return [weights, weights.with_suffix(".json")]
