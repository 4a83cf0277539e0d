"""The synthetic set of CREStereo (Li et al., CVPR 2022)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datasets.decoders import scaled_png
from datasets.frames import FrameDataset
from datasets.names import Split
from datasets.pairs import frames_of_parts
from datasets.splits import train_only
from datasets.templates import Files, home

__all__ = ["CreStereo", "is_crestereo"]

_PARTS = ("tree", "shapenet", "reflective", "hole")


class CreStereo(FrameDataset):
    """CREStereo: 200,000 rendered pairs in four parts, of which any may be present.

    ```
    {tree,shapenet,reflective,hole}/.../NAME_{left,right}.jpg
    {tree,shapenet,reflective,hole}/.../NAME_{left,right}.disp.png    16 bits, 32 steps a pixel
    ```

    A stored 0 is unknown. `ROOT` may hold the tree in a folder `crestereo` or `CREStereo`. There
    are no splits: all of it is `train`.

    Data: dataset_download.sh of github.com/megvii-research/CREStereo, 400 GB; licence: that
    repository states none for the data.
    """

    def __init__(self, root: str | Path, *, split: Split = "train") -> None:
        """Find the frames.

        Raises:
            FileNotFoundError: there is no part, or a file of a frame is missing.
            ValueError: another split than `train`.
        """
        train_only(split, "CREStereo's set is for training only")
        layout = "understood as CREStereo: {tree,shapenet,reflective,hole}/.../NAME_left.jpg"
        templates, decode = ("{name}_VIEW", "{name}_VIEW.disp"), partial(scaled_png, steps=32)
        super().__init__(frames_of_parts(_base(Path(root)), _PARTS, templates, decode, layout))


def is_crestereo(root: str | Path) -> bool:
    """Whether `root` holds a part of CREStereo's set."""
    base = _base(Path(root))
    return any(Files(base / part, "{name}_left.disp").exist() for part in _PARTS)


def _base(root: Path) -> Path:
    return home(root, ("crestereo", "CREStereo"), *_PARTS)
