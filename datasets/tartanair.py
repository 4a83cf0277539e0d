"""TartanAir (Wang et al., IROS 2020) and its second version (TartanAir V2, 2023)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ea_psmnet.datasets.decoders import depth_float_png, depth_npy
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.names import Split, train_only
from ea_psmnet.datasets.templates import both_views, frames_of_views

FOCAL_LENGTH = 320.0
"""Focal length of both cameras in pixels."""
BASELINE = 0.25
"""Distance of the cameras in metres, the files' unit of depth."""

_CAMERAS = ("lcam_front", "rcam_front")


class TartanAir(FrameDataset):
    """TartanAir: a drone's flights through 18 rendered places, 640x480 pixels.

    ```
    PLACE/{Easy,Hard}/P000/image_left/000000_left.png        PLACE may be nested twice, as unpacked
    PLACE/{Easy,Hard}/P000/image_right/000000_right.png
    PLACE/{Easy,Hard}/P000/depth_left/000000_left_depth.npy  metres; depth_right is optional
    ```

    Disparity is 320 pixels * 0.25 m / depth. The depth of the sky is stored as some kilometres, so
    it is known. The published test set has no depth: everything is `train`.

    Data: download_training.py of github.com/castacks/tartanair_tools (--rgb --depth); licence: see
    theairlab.org/tartanair-dataset (that of version 2 is CC BY 4.0), cite Wang et al. 2020.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "TartanAir's test set has no depth")
        images = both_views(Path(root), "{scene}/image_VIEW/{frame}_VIEW")
        truths = both_views(Path(root), "{scene}/depth_VIEW/{frame}_VIEW_depth", ".npy")
        layout = "understood as TartanAir: PLACE/{Easy,Hard}/P000/{image,depth}_{left,right}"
        decode = partial(depth_npy, scale=FOCAL_LENGTH * BASELINE)
        super().__init__(frames_of_views(images, truths, decode, layout))


class TartanAirV2(FrameDataset):
    """TartanAir V2: flights through 65 rendered places, 640x640 pixels, front cameras.

    ```
    PLACE/Data_{easy,hard}/P000/image_lcam_front/000000_lcam_front.png        left
    PLACE/Data_{easy,hard}/P000/image_rcam_front/000000_rcam_front.png        right
    PLACE/Data_{easy,hard}/P000/depth_lcam_front/000000_lcam_front_depth.png  metres, float32
                                        in the four bytes of a pixel; depth of the right is optional
    ```

    Disparity is 320 pixels * 0.25 m / depth. The depth of the sky is stored as some kilometres, so
    it is known. Only the front cameras are read: the others do not form rectified pairs. The
    dataset has no splits: everything is `train`.

    Data: the package `tartanair` (github.com/castacks/tartanairpy); licence: CC BY 4.0, see
    tartanair.org.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "TartanAir V2 has no test split")
        images, truths = (
            both_views(Path(root), template, names=_CAMERAS)
            for template in (
                "{scene}/image_VIEW/{frame}_VIEW",
                "{scene}/depth_VIEW/{frame}_VIEW_depth",
            )
        )
        layout = "understood as TartanAir V2: PLACE/Data_{easy,hard}/P000/{image,depth}_lcam_front"
        decode = partial(depth_float_png, scale=FOCAL_LENGTH * BASELINE)
        super().__init__(frames_of_views(images, truths, decode, layout))


def is_tartanair(root: str | Path) -> bool:
    """Return whether `root` holds flights of TartanAir."""
    return _has_flights(Path(root), ("Easy", "Hard"), "left")


def is_tartanair_v2(root: str | Path) -> bool:
    """Return whether `root` holds flights of TartanAir V2."""
    return _has_flights(Path(root), ("Data_easy", "Data_hard"), _CAMERAS[0])


def _has_flights(root: Path, levels: tuple[str, str], view: str) -> bool:
    return any(
        (flight / f"image_{view}").is_dir() and (flight / f"depth_{view}").is_dir()
        for above in ("", "*/", "*/*/")
        for level in levels
        for flight in root.glob(f"{above}{level}/P*")
    )
