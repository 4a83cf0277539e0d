"""`attention-maps`: the attention maps of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.commands.options import NetworkOptions


def attention_maps(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    site: str,
    out: Path,
    pixel: tuple[int, int] | None = None,
    options: Annotated[NetworkOptions, tyro.conf.arg(name="")] = NetworkOptions(),
) -> None:
    """Draw the attention maps of one site over the left image.

    Efficient attention has a global map for every key channel; dot-product attention has a map for
    every pixel and needs --pixel. A map is drawn as its maximum and its mean over disparity, and as
    the disparity of its maximum. Writes `sheet.png` with all maps, `map_00.png` and so on with one
    each, and `maps.npz` with the values. Prints how much the site adds to its input, and how much
    of that is constant over all positions.

    Args:
        left: Left image.
        right: Right image, of the same size.
        site: Attention module, for example hourglass1.encoder.
        out: Folder for the results.
        pixel: Column and row in the left image, from 0 at the top left; for dot-product attention.
        options: Network and its options.
    """
    from ea_psmnet.experiments.attention_maps import attention_maps as run
    from ea_psmnet.experiments.attention_maps import write_maps
    from ea_psmnet.files import printable, read_image

    if not options.attention:
        raise ValueError("--no-attention leaves no maps to draw: leave it out")
    images = read_image(left), read_image(right)
    maps = run(options.load(), *images, site, pixel)
    for path in write_maps(out, maps):
        print(printable(path))
    print(
        f"{site} adds {maps.added:.0%} of its input's norm; {maps.constant:.0%} of the energy "
        "of what it adds is constant over all positions"
    )
