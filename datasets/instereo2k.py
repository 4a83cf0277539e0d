"""InStereo2K (Bao et al., Science China Information Sciences 2020)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import get_args

from ea_psmnet.datasets.decoders import scaled_png
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.names import Split
from ea_psmnet.datasets.templates import Files, both_views, frames_of_views, home
from ea_psmnet.tables import check_choice


class InStereo2k(FrameDataset):
    """InStereo2K: 2,050 real indoor pairs, ground truth of both views from structured light.

    ```
    {train,test}/.../000000/{left,right}.png             train has parts: train/part1/000000
    {train,test}/.../000000/{left_disp,right_disp}.png   16 bits, 100 * disparity, 0 unknown
    ```

    The tree may also lie in a subfolder of `ROOT` named `InStereo2K` or similar.

    Data: the links in the readme of github.com/YuhuaXu/StereoDataset; licence: none is stated.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        check_choice("split", split, get_args(Split))
        folder = _base(Path(root)) / split
        images, truths = (
            both_views(folder, template) for template in ("{scene}/VIEW", "{scene}/VIEW_disp")
        )
        layout = "understood as InStereo2K: {train,test}/.../000000/{left,right,left_disp}.png"
        decode = partial(scaled_png, steps=100)
        super().__init__(frames_of_views(images, truths, decode, layout, split))


def is_instereo2k(root: str | Path) -> bool:
    """Return whether `root` holds a split of InStereo2K."""
    base = _base(Path(root))
    return any(Files(base / split, "{scene}/left_disp").exist() for split in get_args(Split))


def _base(root: Path) -> Path:
    return home(root, ("InStereo2K", "InStereo2k", "instereo2k"), "train", "test")
