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
    write: tuple[str, ...] = ("disparity", "preview"),
    scale: float = 1,
    memory: str | None = None,
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Predict the disparity of a rectified pair.

    Writes NAME_disparity.pfm (float32 pixels), NAME_disparity.png (16 bits, pixels times 256, as
    in KITTI), NAME_preview.png for viewing, and NAME_pair.json with the input images. --write
    chooses among these and other outputs.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        out: Folder for the results.
        name: Prefix of the names of the results; default: the common part of the images' names, or
            the name of their folder.
        force: Overwrite the results of another pair.
        write: What to write besides NAME_pair.json: disparity, preview.
        scale: Factor on the size at which the pair is predicted. 0.5 needs less memory and time and
            doubles the range of disparities, with less detail. Results have the original size.
        memory: Memory limit of the program on the device, for example 8GiB; default: the free
            memory. Pairs that need more are predicted in overlapping tiles.
        options: Network that predicts, and its options.
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
        raise ValueError(f"'{name}' is not a valid --name: it is a prefix of file names in --out")
    views = as_pair((left, right))
    called, pair = name or pair_name(left, right), pair_record(left, right)
    for path in prediction_paths(out, called, write):
        if path.exists() and any(path.samefile(image) for image in (left, right)):
            raise ValueError(f"{path}: would overwrite an input image: give another --out")
    if not force:
        check_unclaimed(out, called, pair)
    matcher = options.load(memory)
    result = predicted_at_scale(matcher, views, scale)
    for path in write_prediction(out, called, result, pair, write):
        print(printable(path))
