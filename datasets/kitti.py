"""KITTI 2012 (Geiger et al., CVPR 2012) and KITTI 2015 (Menze and Geiger, CVPR 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets.decoders import is_set
from datasets.frames import Frame, FrameDataset, Mask, View
from datasets.names import Split
from datasets.splits import train_only
from datasets.templates import Files, home, matched

__all__ = ["Kitti2012", "Kitti2015", "is_kitti2012", "is_kitti2015"]

_NO_TEST = "the truth of KITTI's test images is not public"
_HOMES_2012 = ("2012", "kitti2012", "Kitti2012", "KITTI2012", "KITTI_2012", "data_stereo_flow")
_HOMES_2015 = ("2015", "kitti2015", "Kitti2015", "KITTI2015", "KITTI_2015", "data_scene_flow")
_CAMERAS_2012 = (("colored_0", "colored_1"), ("image_0", "image_1"))


class Kitti2012(FrameDataset):
    """KITTI 2012: 194 street scenes, truth from a laser on a third of the pixels.

    ```
    training/{colored_0,colored_1}/000000_10.png   left, right; or in grey image_0, image_1
    training/disp_occ/000000_10.png                16 bits, 256 steps a pixel, 0 unknown
    training/disp_noc/000000_10.png                the same but for pixels hidden on the right
    ```

    `ROOT` may hold the tree in a folder called `kitti2012` or the like. Only frame `_10` has
    truth: the `_11` images beside it are another moment's. `nonocc` is where `disp_noc` is known,
    so it tells nothing of pixels without truth.

    Data: "stereo 2012" at cvlibs.net/datasets/kitti/eval_stereo_flow.php; licence:
    CC BY-NC-SA 3.0.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames, in colour where it is there.

        Raises:
            FileNotFoundError: a folder or a file of a frame is missing.
            ValueError: another split than `train`.
        """
        train_only(split, _NO_TEST)
        base = _base_2012(Path(root))
        cameras = next((c for c in _CAMERAS_2012 if (base / c[0]).is_dir()), _CAMERAS_2012[0])
        layout = "understood as KITTI 2012: training/{colored_0,colored_1,disp_occ,disp_noc}"
        super().__init__(_frames(base, cameras, ("disp_occ", "disp_noc"), layout))


class Kitti2015(FrameDataset):
    """KITTI 2015: 200 street scenes with moving cars, truth from a laser and from car models.

    ```
    training/{image_2,image_3}/000000_10.png       left, right
    training/disp_occ_0/000000_10.png              16 bits, 256 steps a pixel, 0 unknown
    training/disp_noc_0/000000_10.png              the same but for pixels hidden on the right
    ```

    `ROOT` may hold the tree in a folder called `kitti2015` or the like. Only frame `_10` has
    truth. `disp_occ_1` is no truth of the right view: it is the later moment's disparity, at the
    pixels of the left image of frame `_10`. So there is none of the right view.

    Data: "stereo 2015" at cvlibs.net/datasets/kitti/eval_scene_flow.php; licence: CC BY-NC-SA 3.0.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames.

        Raises:
            FileNotFoundError: a folder or a file of a frame is missing.
            ValueError: another split than `train`.
        """
        train_only(split, _NO_TEST)
        layout = "understood as KITTI 2015: training/{image_2,image_3,disp_occ_0,disp_noc_0}"
        truth = ("disp_occ_0", "disp_noc_0")
        super().__init__(_frames(_base_2015(Path(root)), ("image_2", "image_3"), truth, layout))


def is_kitti2012(root: str | Path) -> bool:
    """Whether `root` holds KITTI 2012."""
    return (_base_2012(Path(root)) / "disp_occ").is_dir()


def is_kitti2015(root: str | Path) -> bool:
    """Whether `root` holds KITTI 2015."""
    return (_base_2015(Path(root)) / "disp_occ_0").is_dir()


def _base_2012(root: Path) -> Path:
    return home(root, _HOMES_2012, "training/disp_occ") / "training"


def _base_2015(root: Path) -> Path:
    return home(root, _HOMES_2015, "training/disp_occ_0") / "training"


def _frames(
    base: Path, cameras: tuple[str, str], truth: tuple[str, str], layout: str
) -> Iterator[Frame]:
    left, right, known, visible = (
        Files(base / folder, "{frame}_10") for folder in (*cameras, *truth)
    )
    masks = visible.find()
    for key, image, partner, disparity in matched(left, right, known, layout):
        nonocc = {"nonocc": Mask(masks[key], is_set)} if key in masks else {}
        name = f"training/{key[0]}_10"
        yield Frame(View(image, disparity, masks=nonocc), View(partner), name, layout=layout)
