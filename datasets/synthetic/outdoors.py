"""What all scenes outdoors share: the ground and the sky."""

from __future__ import annotations

import numpy as np

from datasets.synthetic.palette import NO_CUTS, UPRIGHT, Palette, backdrop, card
from datasets.synthetic.scene import Solid

_SKY = 1e6
"""Radius of the sky: its disparity is below 0.05 pixels, that of a picture 4K wide included."""


def ground_and_sky(palette: Palette, height: float, middle: float) -> list[Solid]:
    """The plane y = `height`, textured to be seen from about `middle`, under the sky."""
    grey = np.full(3, palette.between(0.2, 0.6))
    soil = palette.material(middle, weak=0.3, base=grey if palette.chance(0.7) else None)
    sky = palette.sky(_SKY)
    dome = Solid("ellipsoid", np.zeros(3), UPRIGHT, np.full(3, _SKY), sky, NO_CUTS)
    # The ground is 1.4 km wide, from 0.7 km behind the camera to 2.1 km before it.
    plane = card(np.array([0, height, 700]), UPRIGHT, (700, 1400), soil)
    return [backdrop(dome), backdrop(plane)]
