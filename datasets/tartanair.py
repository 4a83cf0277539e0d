"""TartanAir (Wang et al., IROS 2020)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datasets.decoders import depth_npy
from datasets.frames import FrameDataset
from datasets.names import Split
from datasets.pairs import both_views, frames_of_views
from datasets.splits import train_only

__all__ = ["TartanAir", "is_tartanair"]

FOCAL_LENGTH = 320.0
"""In pixels, of both cameras."""
BASELINE = 0.25
"""In metres, the files' unit of depth."""


class TartanAir(FrameDataset):
    """TartanAir: a drone's flights through 30 rendered places, 640x480 pixels.

    ```
    PLACE/{Easy,Hard}/P000/image_left/000000_left.png        PLACE may be twice, as unpacked
    PLACE/{Easy,Hard}/P000/image_right/000000_right.png
    PLACE/{Easy,Hard}/P000/depth_left/000000_left_depth.npy  metres; depth_right is optional
    ```

    Disparity is 320 pixels times 0.25 m by depth. The sky is told as some kilometres, so it is
    known. The published test set has no depth: all that is here is `train`.

    Data: download_training.py of github.com/castacks/tartanair_tools (--rgb --depth); licence: see
    theairlab.org/tartanair-dataset (that of version 2 is CC BY 4.0), cite Wang et al. 2020.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames.

        Raises:
            FileNotFoundError: there are no frames, or a file of one is missing.
            ValueError: another split than `train`.
        """
        train_only(split, "TartanAir's test set has no depth")
        images = both_views(Path(root), "{scene}/image_VIEW/{frame}_VIEW")
        truths = both_views(Path(root), "{scene}/depth_VIEW/{frame}_VIEW_depth", ".npy")
        layout = "understood as TartanAir: PLACE/{Easy,Hard}/P000/{image,depth}_{left,right}"
        decode = partial(depth_npy, scale=FOCAL_LENGTH * BASELINE)
        super().__init__(frames_of_views(images, truths, decode, layout))


def is_tartanair(root: str | Path) -> bool:
    """Whether `root` holds flights of TartanAir."""
    patterns = ("*/Easy", "*/Hard", "Easy", "Hard", "*/*/Easy", "*/*/Hard")
    return any(
        (flight / "image_left").is_dir() and (flight / "depth_left").is_dir()
        for pattern in patterns
        for flight in Path(root).glob(f"{pattern}/P*")
    )
