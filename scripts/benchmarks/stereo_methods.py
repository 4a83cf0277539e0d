"""The methods that `stereo.py` measures: functions from a pair of images to disparity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmarking import code_hash
from published_shapes import CoExLike, LightStereoLike
from torch import nn
from torch.nn import functional as F

from ea_psmnet.files import content_hash
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.inference.export import ExportFormat, describe, written
from ea_psmnet.inference.exported import ExportedMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.machine import has_fast_bfloat16
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PlainPSMNet, build_model
from ea_psmnet.models.weights import BUNDLED, find_weights, load_model
from ea_psmnet.store import digest

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

_RANGE = 192
_SHAPE_STRIDE = 32


@dataclass(frozen=True)
class Method:
    """A method to measure."""

    build: Callable[[], Predict]
    kind: str
    """ours, exported, OpenCV, published form, or shape: layers like those of a network, with random
    weights."""
    accurate: bool = True
    """Whether it has weights, so that its errors are worth measuring."""
    preset: str | None = None
    """Preset, for parameters and multiply-adds."""
    slow: bool = False
    """Whether it is measured with all threads on an idle machine alone."""


class Network:
    """A preset with its bundled weights, or with random ones."""

    def __init__(self, name: str, *, two_scales: bool = False) -> None:
        torch.manual_seed(0)
        self._matcher = (
            StereoMatcher.load(name, device="cpu", two_scales=two_scales)
            if _has_weights(name)
            else StereoMatcher(build_model(name).eval(), device="cpu")
        )

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Disparity (H, W)."""
        return self._matcher(left, right).disparity

    def confidence(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Probability (H, W) of an error below 1 px."""
        found = self._matcher(left, right, confidence=True).confidence
        assert found is not None
        return found


def _has_weights(name: str) -> bool:
    return (BUNDLED / f"{name}.safetensors").is_file()


def _ours(name: str) -> Method:
    return Method(lambda: Network(name), "ours", accurate=_has_weights(name), preset=name)


class Exported:
    """Bundled weights, exported in float32 for any size, by the runtime of the format.

    The file is made once for all processes of a benchmark.
    """

    def __init__(self, name: str, form: ExportFormat, suffix: str) -> None:
        weights = find_weights(name)
        key = digest(f"{content_hash(weights)} {code_hash()}")
        self._path = Path(tempfile.gettempdir()) / f"ea_psmnet-{key}" / f"{name}{suffix}"
        if not self._path.is_file():
            network = load_model(weights)
            record = describe(network, None, "float32", weights=name, sha256=content_hash(weights))
            with written(network, record, self._path, form):
                pass
        self._matchers: dict[int, ExportedMatcher] = {}

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Disparity (H, W), by as many threads as torch uses."""
        threads = torch.get_num_threads()
        if threads not in self._matchers:
            self._matchers[threads] = ExportedMatcher.load(self._path, threads=threads)
        return self._matchers[threads].disparity(left, right)


def _sgbm(mode: int) -> Method:
    return Method(lambda: BlockMatcher("sgbm", _RANGE, mode=mode), "OpenCV")


def _published() -> Predict:
    """The published form in float32, the images padded as there."""
    torch.manual_seed(0)
    network = PlainPSMNet(build_model("psmnet")).eval()

    def predict(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            disparity = network(*_tensors(left, right, 16)).disparity[0]
        return disparity[-left.shape[0] :, : left.shape[1]].numpy()

    return predict


def _shape(network: Callable[[], nn.Module]) -> Predict:
    torch.manual_seed(0)
    model = network().eval()
    to_channels_last(model)
    half = has_fast_bfloat16("cpu")

    def predict(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, half):
            disparity = model(*_tensors(left, right, _SHAPE_STRIDE))[0].float()
        return disparity[-left.shape[0] :, : left.shape[1]].numpy()

    return predict


def _tensors(left: np.ndarray, right: np.ndarray, multiple: int) -> list[torch.Tensor]:
    """(H, W, 3) uint8 to (1, 3, H', W'), padded at the top and right to a multiple."""
    height, width = left.shape[:2]
    views = (torch.from_numpy(view).permute(2, 0, 1)[None].float() / 255 for view in (left, right))
    return [F.pad(view, (0, -width % multiple, -height % multiple, 0)) for view in views]


METHODS: dict[str, Method] = {
    **{name: _ours(name) for name in ("ea-light", "light", "ea-psmnet-small", "ea-psmnet")},
    "ea-light, two scales": Method(lambda: Network("ea-light", two_scales=True), "ours"),
    "ea-light, ONNX Runtime": Method(lambda: Exported("ea-light", "onnx", ".onnx"), "exported"),
    "ea-light, OpenVINO": Method(lambda: Exported("ea-light", "openvino", ".xml"), "exported"),
    "PSMNet, published form": Method(
        _published, "published form", accurate=False, preset="psmnet", slow=True
    ),
    "CoEx-like shape": Method(lambda: _shape(CoExLike), "shape", accurate=False),
    "LightStereo-S-like shape": Method(lambda: _shape(LightStereoLike), "shape", accurate=False),
    "StereoSGBM": _sgbm(cv2.STEREO_SGBM_MODE_SGBM),
    "StereoSGBM, three-way": _sgbm(cv2.STEREO_SGBM_MODE_SGBM_3WAY),
    "StereoSGBM, full": _sgbm(cv2.STEREO_SGBM_MODE_HH),
    "StereoBM": Method(lambda: BlockMatcher("bm", _RANGE), "OpenCV"),
}
"""Methods by name. OpenCV's have their left border padded and their holes filled."""
