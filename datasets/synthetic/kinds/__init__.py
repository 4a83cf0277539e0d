"""The kinds of scenes. Each draws the solids and lights around a camera at the origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ea_psmnet.datasets.synthetic.kinds.floating import flying, layers, stage
from ea_psmnet.datasets.synthetic.kinds.places import bare, garden, room, street
from ea_psmnet.datasets.synthetic.palette import Layout, Palette


@dataclass(frozen=True)
class Kind:
    """A kind of scene, with its probability and range of lenses."""

    draw: Callable[[Palette], Layout]
    share: float
    """Probability of the kind."""
    focal: tuple[float, float]
    """Range of the focal length in image widths."""
    near: float
    """Smallest depth of foreground objects."""


KINDS: dict[str, Kind] = {
    "flying": Kind(flying, 0.20, (0.6, 2.4), 1.0),
    "stage": Kind(stage, 0.22, (0.7, 1.8), 1.0),
    "layers": Kind(layers, 0.13, (0.8, 2.4), 0.9),
    "room": Kind(room, 0.13, (0.5, 1.4), 0.7),
    "street": Kind(street, 0.12, (0.5, 1.5), 3.0),
    "garden": Kind(garden, 0.12, (0.5, 1.8), 1.0),
    "bare": Kind(bare, 0.08, (0.6, 1.6), 1.0),
}
"""Kinds of scenes by name; their probabilities add up to 1."""
