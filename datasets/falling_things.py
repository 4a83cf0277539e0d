"""Falling Things (Tremblay, To and Birchfield, CVPR workshops 2018)."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.decoders import depth_png
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.names import Split, train_only
from ea_psmnet.datasets.templates import Files, frames_of_parts, home
from ea_psmnet.files import readable
from ea_psmnet.tables import check_choice

Variant = Literal["single", "mixed", "both"]

_BASELINE = 6 * 100
"""6 cm in the files' unit of depth, a hundredth of a centimetre."""
_CAMERAS = "_camera_settings.json"
_LAYOUT = "understood as Falling Things: {single,mixed}/.../000000.{left,right}.{jpg,depth.png}"


class FallingThings(FrameDataset):
    """Falling Things: 61,500 rendered pairs of household objects, with depth of both views.

    ```
    single/OBJECT/SCENE/000000.{left,right}.jpg          mixed/SCENE/... the same
    single/OBJECT/SCENE/000000.{left,right}.depth.png    16 bits, 0.1 mm
    single/OBJECT/SCENE/_camera_settings.json            focal length in pixels
    ```

    Disparity is focal length * 6 cm / depth. The format ends at 6.55 m; pixels beyond are unknown.
    The tree may also lie in a subfolder of `ROOT` named `fat` or `FallingThings`. The dataset has
    no splits: everything is `train`.

    Data: fat.zip at research.nvidia.com/publication/2018-06_Falling-Things; licence: see
    the terms on that page and in the download.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", variant: Variant = "both"
    ) -> None:
        """Find the frames.

        Args:
            root: The folder that holds `single` or `mixed`.
            split: `train` only.
            variant: Pairs with a `single` object, with several (`mixed`), or `both`, those that
                exist.
        """
        train_only(split, "Falling Things has no test split")
        check_choice("variant", variant, get_args(Variant))
        parts = ("single", "mixed") if variant == "both" else (variant,)
        templates = ("{name}.VIEW", "{name}.VIEW.depth")
        super().__init__(frames_of_parts(_base(Path(root)), parts, templates, _disparity, _LAYOUT))


def is_falling_things(root: str | Path) -> bool:
    """Return whether `root` holds Falling Things."""
    base = _base(Path(root))
    return any(Files(base / part, "{name}.left.depth").exist() for part in ("single", "mixed"))


def _base(root: Path) -> Path:
    return home(root, ("fat", "FallingThings"), "single", "mixed")


def _disparity(path: Path) -> NDArray[np.float32]:
    return depth_png(path, _focal_length(path.parent / _CAMERAS) * _BASELINE)


@cache
def _focal_length(path: Path) -> float:
    """Read the focal length in pixels, which is the same for both cameras."""
    try:
        with readable(path):
            settings = json.loads(path.read_text(encoding="utf-8"))
        focal_length = float(settings["camera_settings"][0]["intrinsic_settings"]["fx"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: contains no focal length ({error!r}); download it again"
        ) from error
    if not 0 < focal_length < math.inf:
        raise ValueError(f"{path}: focal length {focal_length}; download it again")
    return focal_length
