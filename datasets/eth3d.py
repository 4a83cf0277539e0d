"""ETH3D's two-view stereo benchmark (Schöps et al., CVPR 2017)."""

from __future__ import annotations

from pathlib import Path

from datasets.frames import FrameDataset
from datasets.middlebury import is_middeval3, two_view_frames
from datasets.names import Split
from datasets.splits import train_only
from datasets.templates import home

__all__ = ["Eth3d", "is_eth3d"]


class Eth3d(FrameDataset):
    """ETH3D: 27 grey pairs, indoors and outdoors, truth from a laser on the left view.

    ```
    two_view_training/SCENE/{im0.png,im1.png,calib.txt}
    two_view_training_gt/SCENE/disp0GT.pfm      inf is unknown
    two_view_training_gt/SCENE/mask0nocc.png    255 visible in both
    ```

    The truth may also lie beside the images, and the scenes then in `ROOT` itself, where both
    archives were unpacked in one place. `ROOT` may hold the tree in a folder `ETH3D`.

    Data: two_view_training.7z and two_view_training_gt.7z ("low-res two-view") at
    eth3d.net/datasets; licence: its terms stand at eth3d.net, cite Schöps et al. 2017.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the scenes.

        Raises:
            FileNotFoundError: a folder or a file of a scene is missing.
            ValueError: another split than `train`.
        """
        train_only(split, "the truth of ETH3D's test images is not public")
        base = _base(Path(root))
        images, truth = base / "two_view_training", base / "two_view_training_gt"
        if _is_flat(base):
            images = base
        layout = "understood as ETH3D: two_view_training/SCENE and two_view_training_gt/SCENE"
        super().__init__(
            two_view_frames(
                images=(images, "{scene}"),
                truth=(truth if truth.is_dir() else images, "{scene}"),
                names=("im1", "disp0GT", "disp1GT"),
                layout=layout,
            )
        )


def is_eth3d(root: str | Path) -> bool:
    """Whether `root` holds ETH3D's training pairs."""
    base = _base(Path(root))
    return (base / "two_view_training").is_dir() or _is_flat(base)


def _base(root: Path) -> Path:
    return home(root, ("ETH3D", "eth3d"), "two_view_training")


def _is_flat(base: Path) -> bool:
    """Whether scenes with their truth lie in the folder itself, and are not Middlebury's."""
    others = (base / "two_view_training").exists() or is_middeval3(base)
    return not others and any(path.suffix.lower() == ".pfm" for path in base.glob("*/disp0GT.*"))
