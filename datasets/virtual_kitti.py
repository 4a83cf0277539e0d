"""Virtual KITTI 2 (Cabon, Murray and Humenberger, 2020)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datasets.decoders import depth_png
from datasets.frames import FrameDataset
from datasets.names import Split
from datasets.pairs import frames_of_views
from datasets.splits import train_only
from datasets.templates import Files, home

__all__ = ["VirtualKitti", "is_virtual_kitti"]

FOCAL_LENGTH = 725.0087
"""In pixels, of both cameras."""
BASELINE = 53.2725
"""In centimetres, the files' unit of depth."""

_IMAGES = ("", "vkitti_2.0.3_rgb")
_DEPTHS = ("", "vkitti_2.0.3_depth")


class VirtualKitti(FrameDataset):
    """Virtual KITTI 2: five of KITTI's drives rendered in ten variations, 21,260 pairs.

    ```
    Scene01/15-deg-left/frames/rgb/{Camera_0,Camera_1}/rgb_00000.jpg        left, right
    Scene01/15-deg-left/frames/depth/{Camera_0,Camera_1}/depth_00000.png    16 bits, centimetres
    ```

    Images and depth may also lie in `vkitti_2.0.3_rgb` and `vkitti_2.0.3_depth`. Disparity is
    725.0087 pixels times 0.532725 m by depth. The format ends at 655 m: the sky is unknown. There
    are no splits: all of it is `train`.

    Data: vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar at
    europe.naverlabs.com/research/proxy-virtual-worlds; licence: its terms of use stand on
    that page, cite Cabon et al. 2020.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames.

        Raises:
            FileNotFoundError: there are no frames, or a file of one is missing.
            ValueError: another split than `train`.
        """
        train_only(split, "Virtual KITTI 2 has no test split")
        images = _files(Path(root), _IMAGES, "rgb", ".jpg")
        truths = _files(Path(root), _DEPTHS, "depth", ".png")
        layout = "understood as Virtual KITTI 2: SCENE/VARIATION/frames/{rgb,depth}/Camera_{0,1}"
        decode = partial(depth_png, scale=FOCAL_LENGTH * BASELINE)
        super().__init__(frames_of_views(images, truths, decode, layout))


def is_virtual_kitti(root: str | Path) -> bool:
    """Whether `root` holds images of Virtual KITTI 2."""
    base = _base(Path(root), _IMAGES)
    return base.is_dir() and any(base.glob("Scene*/*/frames/rgb/Camera_0"))


def _base(root: Path, names: tuple[str, ...]) -> Path:
    return home(root, names, "Scene01", "Scene02", "Scene06", "Scene18", "Scene20")


def _files(root: Path, names: tuple[str, ...], kind: str, suffix: str) -> tuple[Files, Files]:
    """Files of both cameras."""
    base = _base(root, names)
    scenes = tuple(sorted(path.name for path in base.glob("Scene*")))
    left, right = (
        Files(base, f"{{scene}}/frames/{kind}/Camera_{n}/{kind}_{{frame}}", (suffix,), scenes)
        for n in (0, 1)
    )
    return left, right
