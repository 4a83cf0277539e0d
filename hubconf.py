"""Entries of `torch.hub.load("OWNER/ea-psmnet", ENTRY)`.

`stereo_matcher` and `from_pretrained` return a `StereoMatcher`, which takes images of any size. The
other entries, one for each preset with underscores for hyphens, return bare networks, whose input
is (B, 3, H, W) in RGB from 0 to 1 with sides that are multiples of 16.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ea_psmnet.inference.matcher import DEFAULT, StereoMatcher
from ea_psmnet.models.config import PRESETS
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import BUNDLED, load_model

dependencies = [
    "cv2",
    "matplotlib",
    "numpy",
    "PIL",
    "psutil",
    "pydantic",
    "safetensors",
    "torch",
    "tqdm",
]


def stereo_matcher(weights: str = DEFAULT, **options: Any) -> StereoMatcher:
    """A matcher with bundled weights.

    Args:
        weights: Name of bundled weights.
        options: Keyword arguments of `StereoMatcher.load`.
    """
    return StereoMatcher.load(weights, **options)


def from_pretrained(path: str, **options: Any) -> StereoMatcher:
    """A matcher with local weights, such as those of a training run.

    A description beside them, `NAME.json`, is available as `StereoMatcher.card`.

    Args:
        path: File of weights, or a folder that holds one `.safetensors` file, or
            `model.safetensors` among several.
        options: Keyword arguments of `StereoMatcher.load`.

    Raises:
        FileNotFoundError: There is no such file or folder, or the folder holds no weights.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return StereoMatcher.load(path, **options)


def _network(preset: str, pretrained: bool | None = None) -> PSMNet:
    """The network of a preset in evaluation mode if it has weights, or freshly initialised.

    Args:
        preset: Name of the preset.
        pretrained: Load the bundled weights; default: if there are any.

    Raises:
        FileNotFoundError: There are no bundled weights of this preset.
    """
    if pretrained is None:
        pretrained = (BUNDLED / f"{preset}.safetensors").is_file()
    return load_model(preset) if pretrained else build_model(preset)


for _preset in PRESETS:
    _entry = partial(_network, _preset)
    _entry.__doc__ = f"The network `{_preset}`; see `hubconf._network` for `pretrained`."
    globals()[_preset.replace("-", "_")] = _entry
