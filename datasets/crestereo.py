"""The synthetic dataset of CREStereo (Li et al., CVPR 2022)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ea_psmnet.datasets.decoders import scaled_png
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.names import Split, train_only
from ea_psmnet.datasets.templates import Files, frames_of_parts, home

_PARTS = ("tree", "shapenet", "reflective", "hole")


class CreStereo(FrameDataset):
    """CREStereo: 200,000 rendered pairs in four parts, any of which may be missing.

    ```
    {tree,shapenet,reflective,hole}/.../NAME_{left,right}.jpg
    {tree,shapenet,reflective,hole}/.../NAME_{left,right}.disp.png    16 bits, 32 * disparity
    ```

    A stored 0 is unknown. The tree may also lie in a subfolder of `ROOT` named `crestereo` or
    `CREStereo`. The dataset has no splits: everything is `train`.

    Data: dataset_download.sh of github.com/megvii-research/CREStereo, 400 GB; licence: none is
    stated for the data.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        train_only(split, "CREStereo's dataset is for training only")
        layout = "understood as CREStereo: {tree,shapenet,reflective,hole}/.../NAME_left.jpg"
        templates, decode = ("{name}_VIEW", "{name}_VIEW.disp"), partial(scaled_png, steps=32)
        super().__init__(frames_of_parts(_base(Path(root)), _PARTS, templates, decode, layout))


def is_crestereo(root: str | Path) -> bool:
    """Return whether `root` holds a part of CREStereo's dataset."""
    base = _base(Path(root))
    return any(Files(base / part, "{name}_left.disp").exist() for part in _PARTS)


def _base(root: Path) -> Path:
    return home(root, ("crestereo", "CREStereo"), *_PARTS)
