"""MPI Sintel's stereo dataset (Butler et al., ECCV 2012)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ea_psmnet.datasets.decoders import is_unset, neither_set, sintel_png
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.datasets.names import RenderPass, Split, render_passes, train_only
from ea_psmnet.datasets.templates import Files, every_part, home, matched

_LAYOUT = "understood as Sintel: training/{clean,final}_{left,right} and training/disparities"


class Sintel(FrameDataset):
    """Sintel: 1064 frames of an animated film, dense ground truth of the left view.

    ```
    training/{clean,final}_{left,right}/alley_1/frame_0001.png
    training/disparities/alley_1/frame_0001.png    4 R + G / 64 pixels, every pixel known
    training/occlusions/alley_1/frame_0001.png     not 0: occluded in the right image
    training/outofframe/alley_1/frame_0001.png     not 0: outside the right image
    ```

    The tree may also lie in a subfolder of `ROOT` named `Sintel` or similar. Masks: `in_frame`, the
    pixels that the authors evaluate, and `nonocc`, those that are in frame and not occluded.

    Data: "stereo" at sintel.is.tue.mpg.de; licence: see that site, cite Butler et al. 2012; the
    film itself is CC BY 3.0.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", render_pass: RenderPass = "clean"
    ) -> None:
        """Find the frames.

        Args:
            root: The folder that holds `training`.
            split: `train` only.
            render_pass: `clean`, `final` or `both`: all clean frames, then all final ones.
        """
        train_only(split, "only the training scenes have ground truth")
        base = _base(Path(root))
        passes = render_passes(render_pass).items()
        super().__init__(every_part(_frames(base, images, label) for label, images in passes))


def is_sintel(root: str | Path) -> bool:
    """Return whether `root` holds Sintel's stereo dataset."""
    return (_base(Path(root)) / "disparities").is_dir()


def _base(root: Path) -> Path:
    names = ("Sintel", "sintel", "SintelStereo", "sintel_stereo", "MPI-Sintel-stereo", "MPI_Sintel")
    return home(root, names, "training/disparities") / "training"


def _frames(base: Path, images: str, label: str) -> Iterator[Frame]:
    others = "disparities", "occlusions", "outofframe"
    left, right, truth, hidden, outside = (
        Files(base / folder, "{scene}/{frame}")
        for folder in (f"{images}_left", f"{images}_right", *others)
    )
    occlusions, borders = hidden.find(), outside.find()
    for key, image, partner, disparity in matched(left, right, truth, _LAYOUT):
        masks = {}
        if key in borders:
            masks["in_frame"] = Mask(borders[key], is_unset)
        if key in borders and key in occlusions:
            both = partial(neither_set, other=borders[key])
            masks["nonocc"] = Mask(occlusions[key], both)
        name = "/".join((*filter(None, (label,)), *key))
        yield Frame(View(image, disparity, sintel_png, masks), View(partner), name, layout=_LAYOUT)
