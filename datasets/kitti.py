"""KITTI 2012, KITTI 2015 and Virtual KITTI 2, which renders KITTI's drives."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ea_psmnet.datasets.decoders import depth_png, is_set
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.datasets.names import Split, train_only
from ea_psmnet.datasets.templates import Files, both_views, frames_of_views, home, matched

_NO_TEST = "the ground truth of KITTI's test images is not public"
_HOMES_2012 = ("2012", "kitti2012", "Kitti2012", "KITTI2012", "KITTI_2012", "data_stereo_flow")
_HOMES_2015 = ("2015", "kitti2015", "Kitti2015", "KITTI2015", "KITTI_2015", "data_scene_flow")
_CAMERAS_2012 = (("colored_0", "colored_1"), ("image_0", "image_1"))


class Kitti2012(FrameDataset):
    """KITTI 2012 (Geiger et al., CVPR 2012): 194 street scenes, sparse ground truth from a laser.

    ```
    training/{colored_0,colored_1}/000000_10.png   left, right; or in grey image_0, image_1
    training/disp_occ/000000_10.png                16 bits, 256 * disparity, 0 unknown
    training/disp_noc/000000_10.png                the same for non-occluded pixels only
    ```

    The tree may also lie in a subfolder of `ROOT` named `kitti2012` or similar. Only frame `_10`
    has ground truth; the `_11` images show a later moment. The mask `nonocc` is where `disp_noc`
    is known, so it is undefined where there is no ground truth.

    Data: "stereo 2012" at cvlibs.net/datasets/kitti/eval_stereo_flow.php; licence:
    CC BY-NC-SA 3.0.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames; colour images are preferred to grey ones."""
        train_only(split, _NO_TEST)
        base = _base_2012(Path(root))
        cameras = next((c for c in _CAMERAS_2012 if (base / c[0]).is_dir()), _CAMERAS_2012[0])
        layout = "understood as KITTI 2012: training/{colored_0,colored_1,disp_occ,disp_noc}"
        super().__init__(_frames(base, cameras, ("disp_occ", "disp_noc"), layout))


class Kitti2015(FrameDataset):
    """KITTI 2015 (Menze and Geiger, CVPR 2015): 200 street scenes with moving cars.

    Ground truth comes from a laser and from car models.

    ```
    training/{image_2,image_3}/000000_10.png       left, right
    training/disp_occ_0/000000_10.png              16 bits, 256 * disparity, 0 unknown
    training/disp_noc_0/000000_10.png              the same for non-occluded pixels only
    ```

    The tree may also lie in a subfolder of `ROOT` named `kitti2015` or similar. Only frame `_10`
    has ground truth. There is none for the right view: `disp_occ_1` is the disparity at the later
    moment, for the pixels of the left image of frame `_10`.

    Data: "stereo 2015" at cvlibs.net/datasets/kitti/eval_scene_flow.php; licence: CC BY-NC-SA 3.0.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, _NO_TEST)
        layout = "understood as KITTI 2015: training/{image_2,image_3,disp_occ_0,disp_noc_0}"
        truth = ("disp_occ_0", "disp_noc_0")
        super().__init__(_frames(_base_2015(Path(root)), ("image_2", "image_3"), truth, layout))


def is_kitti2012(root: str | Path) -> bool:
    """Return whether `root` holds KITTI 2012."""
    return (_base_2012(Path(root)) / "disp_occ").is_dir()


def is_kitti2015(root: str | Path) -> bool:
    """Return whether `root` holds KITTI 2015."""
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


_VIRTUAL_FOCAL = 725.0087
"""Focal length of both cameras in pixels."""
_VIRTUAL_BASELINE = 53.2725
"""Distance of the cameras in centimetres, the files' unit of depth."""

_VIRTUAL_IMAGES = ("", "vkitti_2.0.3_rgb")
_VIRTUAL_DEPTHS = ("", "vkitti_2.0.3_depth")


class VirtualKitti(FrameDataset):
    """Virtual KITTI 2 (Cabon, Murray and Humenberger, 2020): 21,260 rendered pairs.

    Five of KITTI's drives, each in ten variations.

    ```
    Scene01/15-deg-left/frames/rgb/{Camera_0,Camera_1}/rgb_00000.jpg        left, right
    Scene01/15-deg-left/frames/depth/{Camera_0,Camera_1}/depth_00000.png    16 bits, centimetres
    ```

    Images and depth may also be in `vkitti_2.0.3_rgb` and `vkitti_2.0.3_depth`. Disparity is
    725.0087 pixels * 0.532725 m / depth. The format ends at 655 m, so the sky is unknown. The
    dataset has no splits: everything is `train`.

    Data: vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar at
    europe.naverlabs.com/research/proxy-virtual-worlds; licence: see the terms of use on
    that page, cite Cabon et al. 2020.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "Virtual KITTI 2 has no test split")
        images = _virtual_files(Path(root), _VIRTUAL_IMAGES, "rgb", ".jpg")
        truths = _virtual_files(Path(root), _VIRTUAL_DEPTHS, "depth", ".png")
        layout = "understood as Virtual KITTI 2: SCENE/VARIATION/frames/{rgb,depth}/Camera_{0,1}"
        decode = partial(depth_png, scale=_VIRTUAL_FOCAL * _VIRTUAL_BASELINE)
        super().__init__(frames_of_views(images, truths, decode, layout))


def is_virtual_kitti(root: str | Path) -> bool:
    """Return whether `root` holds images of Virtual KITTI 2."""
    base = _base_virtual(Path(root), _VIRTUAL_IMAGES)
    return base.is_dir() and any(base.glob("Scene*/*/frames/rgb/Camera_0"))


def _base_virtual(root: Path, names: tuple[str, ...]) -> Path:
    return home(root, names, "Scene01", "Scene02", "Scene06", "Scene18", "Scene20")


def _virtual_files(
    root: Path, names: tuple[str, ...], kind: str, suffix: str
) -> tuple[Files, Files]:
    """Return the files of both cameras."""
    base = _base_virtual(root, names)
    scenes = sorted(path.name for path in base.glob("Scene*"))
    template = f"{{scene}}/frames/{kind}/VIEW/{kind}_{{frame}}"
    return both_views(base, template, suffix, ("Camera_0", "Camera_1"), scenes)
