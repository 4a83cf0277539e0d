"""`predict`: from two images to disparity files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.commands.options import MatcherOptions

__all__ = ["predict"]


def predict(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    out: Path,
    memory: str | None = None,
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Predict the disparity of a rectified pair.

    Writes, named after the left image: disparity as `.pfm` (float32 pixels) and 16-bit `.png`
    (pixels times 256, as KITTI), and a `_preview.png` to look at.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        out: Folder for the results.
        memory: What the program may hold on the device, as 8GiB; default: what is free there. Pairs
            that need more are predicted in overlapping tiles.
        options: Which network predicts, and how.
    """
    from ea_psmnet.files import read_image
    from ea_psmnet.inference.outputs import prediction_paths, write_prediction
    from ea_psmnet.tables import parse_bytes

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file: --out takes a folder")
    images = read_image(left), read_image(right)
    for path in prediction_paths(out, left.stem):
        if path.exists() and any(path.samefile(image) for image in (left, right)):
            raise ValueError(f"{path}: would overwrite an input image: give another --out")
    matcher = options.load(memory=None if memory is None else parse_bytes(memory))
    disparity = matcher(*images).disparity
    for path in write_prediction(out, left.stem, images[0], disparity):
        print(path)
