"""`attention-maps`: what the attention in a network looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.commands.options import MatcherOptions

__all__ = ["attention_maps"]


def attention_maps(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    site: str,
    out: Path,
    pixel: tuple[int, int] | None = None,
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Draw the attention maps of one site over the left image.

    Efficient attention has a global map for every key channel; dot-product attention one for every
    pixel: give --pixel. Every map is shown by its maximum and its mean over disparity, and by the
    disparity at which it peaks. Writes `sheet.png` with all maps, `map_00.png` and so on with one
    each, and `maps.npz` with the maps as numbers. Tells how much the site adds to its input, and
    how much of that is a mere constant.

    Args:
        left: Left image.
        right: Right image, of the same size.
        site: Which attention module, as hourglass1.encoder.
        out: Folder for the results.
        pixel: x and y in the left image, from 0 at the top left; for dot-product attention.
        options: Which network predicts, and how.
    """
    from ea_psmnet.experiments.attention_maps import attention_maps as run
    from ea_psmnet.experiments.attention_maps import write_maps
    from ea_psmnet.files import printable, read_image

    images = read_image(left), read_image(right)
    maps = run(options.load(), *images, site, pixel)
    for path in write_maps(out, maps):
        print(printable(path))
    print(
        f"{site} adds {maps.added:.0%} of its input's size, and {maps.constant:.0%} of the square "
        "sum of that is alike at every position"
    )
