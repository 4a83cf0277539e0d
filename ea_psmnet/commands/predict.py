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
    name: str | None = None,
    force: bool = False,
    scale: float = 1,
    memory: str | None = None,
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Predict the disparity of a rectified pair.

    Writes NAME_disparity.pfm (float32 pixels), NAME_disparity.png (16 bits, pixels times 256, as
    KITTI), NAME_preview.png to look at, and NAME_pair.json, which tells whose they are.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        out: Folder for the results.
        name: What the results' names begin with; default: what the images' names share, or their
            folder's name.
        force: Overwrite the results of another pair.
        scale: Predict the pair at this share of its size, as 0.5: less memory and time, a range of
            disparities twice as far, less detail. Results are in pixels of the images as they are.
        memory: What the program may hold on the device, as 8GiB; default: what is free there. Pairs
            that need more are predicted in overlapping tiles.
        options: Which network predicts, and how.
    """
    from ea_psmnet.files import printable
    from ea_psmnet.inference.pairs import as_pair, predicted_at_scale
    from ea_psmnet.inference.prediction_files import (
        check_unclaimed,
        pair_name,
        pair_record,
        prediction_paths,
        write_prediction,
    )

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file: --out takes a folder")
    if name is not None and (Path(name).name != name or not name.strip(".")):
        raise ValueError(f"'{name}' is no --name: it begins the names of files in --out")
    views = as_pair((left, right))
    called, pair = name or pair_name(left, right), pair_record(left, right)
    for path in prediction_paths(out, called):
        if path.exists() and any(path.samefile(image) for image in (left, right)):
            raise ValueError(f"{path}: would overwrite an input image: give another --out")
    if not force:
        check_unclaimed(out, called, pair)
    matcher = options.load(memory)
    disparity = predicted_at_scale(lambda *pair: matcher(*pair).disparity, views, scale)
    for path in write_prediction(out, called, views[0], disparity, pair):
        print(printable(path))
