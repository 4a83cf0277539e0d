"""Middlebury 2014, 2021 and its evaluation (MiddEval3), and ETH3D, which shares their format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from ea_psmnet.datasets.decoders import is_full
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.datasets.names import Resolution, Split, train_only
from ea_psmnet.datasets.templates import Files, Key, every_part, home, matched
from ea_psmnet.tables import check_choice

Calibration = Literal["perfect", "imperfect", "both"]
Exposure = Literal["im1", "im1E", "im1L"]

_NO_TEST = "the ground truth of Middlebury's test images is not public"
_LAYOUT_2014 = (
    "understood as Middlebury 2014: SCENE-{perfect,imperfect}/{im0.png,im1.png,disp0.pfm}"
)
_LAYOUT_2021 = "understood as Middlebury 2021: data/SCENE/{im0.png,im1.png,disp0.pfm}"
_LAYOUT_3 = "understood as MiddEval3: training{F,H,Q}/SCENE/{im0.png,im1.png,disp0GT.pfm}"


class Middlebury2014(FrameDataset):
    """Middlebury 2014 (Scharstein et al., GCPR 2014): 23 indoor scenes of 6 megapixels.

    Dense ground truth of both views.

    ```
    SCENE-{perfect,imperfect}/im0.png    left
    SCENE-{perfect,imperfect}/im1.png    right; im1E.png, im1L.png: different exposure or lighting
    SCENE-{perfect,imperfect}/disp0.pfm  and disp1.pfm for the right view; inf is unknown
    SCENE-{perfect,imperfect}/calib.txt  focal length, baseline, doffs
    ```

    Scenes may be nested in folders. "Perfect" pairs are rectified exactly, "imperfect" ones with
    the errors of a practical calibration. There are no occlusion masks.

    Data: one archive per scene at vision.middlebury.edu/stereo/data/scenes2014; licence: free to
    use and publish, cite Scharstein et al. 2014.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: Split = "train",
        calibration: Calibration | None = None,
        right: Exposure = "im1",
    ) -> None:
        """Find the scenes.

        Args:
            root: The folder that holds the scenes.
            split: `train` only.
            calibration: Rectification: `perfect`, `imperfect` or `both`; default: `perfect`, unless
                no scene is.
            right: Right image: `im1`, `im1E` (different exposure) or `im1L` (different lighting).
        """
        train_only(split, _NO_TEST)
        if calibration is None:
            perfect = (next(Path(root).glob(f"{above}*-perfect"), None) for above in ("", "*/"))
            calibration = "perfect" if any(perfect) else "imperfect"
        check_choice("calibration", calibration, get_args(Calibration))
        check_choice("right", right, get_args(Exposure))
        kinds = ("imperfect", "perfect") if calibration == "both" else (calibration,)
        places = [(Path(root), f"{{scene}}-{kind}") for kind in kinds]
        names = (right, "disp0", "disp1")
        frames = every_part(two_view_frames(place, names, _LAYOUT_2014) for place in places)
        super().__init__(sorted(frames, key=lambda frame: frame.name))


class Middlebury2021(FrameDataset):
    """Middlebury 2021 ("mobile"): 24 indoor scenes of 2 megapixels, ground truth of both views.

    ```
    data/SCENE/im0.png    left; im1.png: right; ambient/... is not read
    data/SCENE/disp0.pfm  and disp1.pfm for the right view; inf is unknown
    data/SCENE/calib.txt  focal length, baseline, doffs
    ```

    `ROOT` may also be the folder `data`. There are no occlusion masks.

    Data: all.zip or one archive per scene at vision.middlebury.edu/stereo/data/scenes2021; licence:
    free to use and publish, cite that page.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "Middlebury 2021 has no test split")
        base = _base_2021(Path(root))
        scenes = tuple(sorted({path.parent.name for path in _scenes_2021(base, "im?.png")}))
        if not scenes:
            raise FileNotFoundError(f"{base}: no scenes; {_LAYOUT_2021}")
        names = ("im1", "disp0", "disp1")
        super().__init__(two_view_frames((base, "{scene}"), names, _LAYOUT_2021, scenes=scenes))


class MiddEval3(FrameDataset):
    """Middlebury's stereo evaluation, version 3: 15 scenes at three resolutions.

    ```
    training{F,H,Q}/SCENE/im0.png         left
    training{F,H,Q}/SCENE/im1.png         right
    training{F,H,Q}/SCENE/calib.txt
    training{F,H,Q}/SCENE/disp0GT.pfm     inf is unknown; disp1GT.pfm for the right view (optional)
    training{F,H,Q}/SCENE/mask0nocc.png   255 non-occluded, 128 occluded, 0 unknown; mask1nocc.png
    ```

    The tree may also lie in a subfolder of `ROOT` named `MiddEval3`; `ROOT` may also be the folder
    of one resolution.

    Data: MiddEval3-data-{F,H,Q}.zip and MiddEval3-GT0-{F,H,Q}.zip (GT1: the right view) at
    vision.middlebury.edu/stereo/submit3; licence: free to use and publish, cite Scharstein et al.
    2014.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", resolution: Resolution | None = None
    ) -> None:
        """Find the scenes.

        Args:
            root: The folder that holds `trainingF`, `trainingH` or `trainingQ`.
            split: `train` only.
            resolution: `F` (full), `H` (half) or `Q` (quarter); required if several exist.
        """
        train_only(split, _NO_TEST)
        base, named = _base_middeval3(Path(root)), resolution_of(Path(root))
        if resolution is None:
            resolution = named or _only_resolution(base)
        check_choice("resolution", resolution, get_args(Resolution))
        place = (base / f"training{resolution}", "{scene}")
        names = ("im1", "disp0GT", "disp1GT")
        super().__init__(two_view_frames(place, names, _LAYOUT_3))


def is_middlebury2014(root: str | Path) -> bool:
    """Return whether `root` holds scenes of Middlebury 2014."""
    return any(
        path.suffix.lower() == ".pfm"
        for pattern in ("*perfect/disp0.*", "*/*perfect/disp0.*")
        for path in Path(root).glob(pattern)
    )


def is_middlebury2021(root: str | Path) -> bool:
    """Return whether `root` holds scenes of Middlebury 2021."""
    return any(_scenes_2021(_base_2021(Path(root)), "disp0.pfm"))


def is_middeval3(root: str | Path) -> bool:
    """Return whether `root` holds training images of Middlebury's evaluation."""
    return bool(_resolutions(_base_middeval3(Path(root))))


def two_view_frames(
    images: tuple[Path, str],
    names: tuple[str, str, str],
    layout: str,
    *,
    truth: tuple[Path, str] | None = None,
    scenes: tuple[str, ...] = (),
) -> Iterator[Frame]:
    """Find frames stored in the format of Middlebury and ETH3D: a folder per scene.

    Args:
        images: The folder of the scenes, and the template of the folder of a scene.
        names: Names of the right image, the left and the right view's ground truth.
        layout: Description of the folder layout, for error messages.
        truth: The same as `images` for ground truth and masks, if they lie elsewhere.
        scenes: Names of the folders to search; empty for all.
    """
    right, left_truth, right_truth = names
    truth = truth or images

    def files(place: tuple[Path, str], name: str, suffix: str = ".png") -> Files:
        return Files(place[0], f"{place[1]}/{name}", (suffix,), scenes)

    rows = matched(
        files(images, "im0"), files(images, right), files(truth, left_truth, ".pfm"), layout
    )
    others = files(truth, right_truth, ".pfm").find()
    masks = [files(truth, f"mask{side}nocc").find() for side in (0, 1)]
    for key, image, partner, disparity in rows:
        yield Frame(
            View(image, disparity, masks=_nonocc(masks[0], key)),
            View(partner, others.get(key), masks=_nonocc(masks[1], key)),
            image.parent.relative_to(images[0]).as_posix(),
            layout=layout,
        )


def _nonocc(found: dict[Key, Path], key: Key) -> dict[str, Mask]:
    return {"nonocc": Mask(found[key], is_full)} if key in found else {}


def _base_2021(root: Path) -> Path:
    return next((base for base in (root, root / "data") if any(_scenes_2021(base))), root)


def _scenes_2021(base: Path, name: str = "disp0.pfm") -> Iterator[Path]:
    """Find files of this name in any case, except in scenes of Middlebury 2014."""
    for path in base.glob(f"*/{name.rpartition('.')[0]}.*"):
        same = PurePosixPath(path.name.lower()).match(name)
        if same and not path.parent.name.endswith("perfect"):
            yield path


def resolution_of(root: Path) -> Resolution | None:
    """Return the resolution that a folder holds according to its name."""
    name = root.resolve().name
    return next((size for size in get_args(Resolution) if name == f"training{size}"), None)


def _base_middeval3(root: Path) -> Path:
    if resolution_of(root):
        return root.resolve().parent
    return home(root, ("MiddEval3",), *(f"training{size}" for size in get_args(Resolution)))


def _resolutions(base: Path) -> list[Resolution]:
    return [size for size in get_args(Resolution) if (base / f"training{size}").is_dir()]


def _only_resolution(base: Path) -> Resolution:
    found = _resolutions(base)
    if len(found) > 1:
        raise ValueError(
            f"{base}: resolutions {', '.join(found)}; choose one by resolution=, "
            f"or name its folder, training{found[0]}"
        )
    if not found:
        raise FileNotFoundError(f"{base}: no training images; {_LAYOUT_3}")
    return found[0]


class Eth3d(FrameDataset):
    """ETH3D's two-view benchmark (Schöps et al., CVPR 2017): 27 grey pairs, indoors and outdoors.

    Ground truth of the left view comes from a laser.

    ```
    two_view_training/SCENE/{im0.png,im1.png,calib.txt}
    two_view_training_gt/SCENE/disp0GT.pfm      inf is unknown
    two_view_training_gt/SCENE/mask0nocc.png    255 non-occluded
    ```

    Ground truth may also be beside the images, and the scenes in `ROOT` itself, if both archives
    were unpacked in one place. The tree may also lie in a subfolder of `ROOT` named `ETH3D`.

    Data: two_view_training.7z and two_view_training_gt.7z ("low-res two-view") at
    eth3d.net/datasets; licence: see the terms at eth3d.net, cite Schöps et al. 2017.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "the ground truth of ETH3D's test images is not public")
        base = _base_eth3d(Path(root))
        images = (base if _is_flat(base) else base / "two_view_training"), "{scene}"
        apart = base / "two_view_training_gt"
        truth = (apart, "{scene}") if apart.is_dir() else None
        layout = "understood as ETH3D: two_view_training/SCENE and two_view_training_gt/SCENE"
        names = ("im1", "disp0GT", "disp1GT")
        super().__init__(two_view_frames(images, names, layout, truth=truth))


def is_eth3d(root: str | Path) -> bool:
    """Return whether `root` holds ETH3D's training pairs."""
    base = _base_eth3d(Path(root))
    return (base / "two_view_training").is_dir() or _is_flat(base)


def _base_eth3d(root: Path) -> Path:
    return home(root, ("ETH3D", "eth3d"), "two_view_training")


def _is_flat(base: Path) -> bool:
    """Return whether the folder itself holds scenes with ground truth that are not Middlebury's."""
    others = (base / "two_view_training").exists() or is_middeval3(base)
    return not others and any(path.suffix.lower() == ".pfm" for path in base.glob("*/disp0GT.*"))
