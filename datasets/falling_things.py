"""Falling Things (Tremblay, To and Birchfield, CVPR workshops 2018)."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datasets.decoders import depth_png
from datasets.frames import FrameDataset
from datasets.names import Split
from datasets.pairs import frames_of_parts
from datasets.splits import check_choice, train_only
from datasets.templates import Files, home
from ea_psmnet.files import readable

__all__ = ["FallingThings", "Variant", "is_falling_things"]

Variant = Literal["single", "mixed", "both"]

_BASELINE = 6 * 100
"""6 cm, in the files' unit of depth: a hundredth of a centimetre."""
_CAMERAS = "_camera_settings.json"
_LAYOUT = "understood as Falling Things: {single,mixed}/.../000000.{left,right}.{jpg,depth.png}"


class FallingThings(FrameDataset):
    """Falling Things: 61,500 rendered pairs of household objects, with the depth of both views.

    ```
    single/OBJECT/SCENE/000000.{left,right}.jpg          mixed/SCENE/... likewise
    single/OBJECT/SCENE/000000.{left,right}.depth.png    16 bits, 0.1 mm
    single/OBJECT/SCENE/_camera_settings.json            focal length in pixels
    ```

    Disparity is focal length times 6 cm by depth. The format ends at 6.55 m: what is farther is
    unknown. `ROOT` may hold the tree in a folder `fat` or `FallingThings`. There are no splits:
    all of it is `train`.

    Data: fat.zip at research.nvidia.com/publication/2018-06_Falling-Things; licence: its
    terms stand on that page and with the download.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", variant: Variant = "both"
    ) -> None:
        """Find the frames.

        Args:
            root: The folder that holds `single` or `mixed`.
            split: `train` only.
            variant: Pairs with a `single` object, with several, or all that is there.

        Raises:
            FileNotFoundError: there is no such part, or a file of a frame is missing.
            ValueError: an argument is none of those named.
        """
        train_only(split, "Falling Things has no test split")
        check_choice("variant", variant, get_args(Variant))
        parts = ("single", "mixed") if variant == "both" else (variant,)
        templates = ("{name}.VIEW", "{name}.VIEW.depth")
        super().__init__(frames_of_parts(_base(Path(root)), parts, templates, _disparity, _LAYOUT))


def is_falling_things(root: str | Path) -> bool:
    """Whether `root` holds Falling Things."""
    base = _base(Path(root))
    return any(Files(base / part, "{name}.left.depth").exist() for part in ("single", "mixed"))


def _base(root: Path) -> Path:
    return home(root, ("fat", "FallingThings"), "single", "mixed")


def _disparity(path: Path) -> NDArray[np.float32]:
    return depth_png(path, _focal_length(path.parent / _CAMERAS) * _BASELINE)


@cache
def _focal_length(path: Path) -> float:
    """Focal length of the left camera, which is the right one's too, in pixels."""
    try:
        with readable(path):
            settings = json.loads(path.read_text(encoding="utf-8"))
        focal_length = float(settings["camera_settings"][0]["intrinsic_settings"]["fx"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no focal length in it ({error!r}); fetch it again") from error
    if not 0 < focal_length < math.inf:
        raise ValueError(f"{path}: a focal length of {focal_length}; fetch it again")
    return focal_length
