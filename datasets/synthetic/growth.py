"""Things that grow or lie about outdoors: bushes, grass, trees, stones. Each stands on y = 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.synthetic.outlines import draw_outline, draw_stencil
from datasets.synthetic.palette import FACING, Palette, card, column, turn_x, turn_y
from datasets.synthetic.scene import Array, Material, Outline, Solid


def _leaf_card(palette: Palette, material: Material, middle: Array, half: float) -> Solid:
    """A square card of leaves, leaning any way but edge-on to the front."""
    lean = turn_y(palette.between(-1.1, 1.1)) @ turn_x(palette.between(-0.9, 0.9))
    family = palette.rng.choice(["foliage", "foliage", "frond", "twigs", "waves"])
    plate = card(middle, lean, (half, half), material)
    return replace(plate, outline=_leafy(palette, str(family)))


def _leafy(palette: Palette, family: str) -> Outline:
    if family == "waves":
        return draw_outline(palette.rng, "foliage")
    return draw_stencil(palette.rng, family)


def _green(palette: Palette, depth: float) -> Material:
    """Mostly green to brown."""
    hue = palette.rng.uniform((0.1, 0.25, 0.02), (0.5, 0.6, 0.25))
    return palette.material(depth, base=hue if palette.chance(0.8) else None)


def bush(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Leaves at many depths: cards within a ball of diameter `size`."""
    green = [_green(palette, depth) for _ in range(2)]
    solids = []
    for k in range(palette.count(4, 9)):
        shift = palette.rng.uniform((-0.3, -0.75, -0.35), (0.3, -0.3, 0.35)) * size
        half = size * palette.between(0.15, 0.35)
        solids.append(_leaf_card(palette, green[k % 2], shift, half))
    return solids


def grass(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Tufts of blades, one behind the other; `size` is their width."""
    green = _green(palette, depth)
    solids = []
    for _ in range(palette.count(2, 5)):
        half = size * np.array([palette.between(0.2, 0.5), palette.between(0.1, 0.35)])
        foot = np.array([palette.between(-0.3, 0.3), 0, palette.between(-0.5, 0.5)]) * size
        plate = card(foot - (0, half[1], 0), turn_y(palette.between(-0.8, 0.8)), half, green)
        solids.append(replace(plate, outline=draw_stencil(palette.rng, "grass")))
    return solids


def tree(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A trunk with cards of leaves or bare branches that cross one another."""
    bark, green = palette.material(depth), _green(palette, depth)
    tall = size * palette.between(0.4, 0.7)
    solids = [column(np.array([0, -tall / 2, 0]), size * palette.spread(0.01, 0.05), tall, bark)]
    if palette.chance(0.3):  # bare: crossing planes of the same crown
        half = size - tall
        for _ in range(palette.count(1, 3)):
            turn = turn_y(palette.between(-1.2, 1.2))
            crown = card(np.array([0, -tall - half, 0]), turn, (half, half), bark)
            solids.append(replace(crown, outline=draw_stencil(palette.rng, "twigs")))
        return solids
    for _ in range(palette.count(3, 6)):
        shift = palette.rng.uniform(-0.14, 0.14, 3) * size
        reach = size * palette.between(0.2, 0.4)
        solids.append(_leaf_card(palette, green, shift - (0, tall + 0.2 * size, 0), reach))
    return solids


def stones(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A heap of rocks: spheres and boxes with many corners cut off."""
    rock = palette.material(depth, base=np.full(3, palette.between(0.15, 0.7)))
    solids = []
    for _ in range(palette.count(1, 4)):
        half = size * palette.rng.uniform(0.2, 0.5, 3)
        foot = palette.rng.uniform(-0.4, 0.4, 3) * size * (1, 0, 1)
        shape = "ellipsoid" if palette.chance(0.6) else "box"
        middle = foot - (0, half[1] * palette.between(0.2, 0.9), 0)
        corners = palette.facets(palette.count(8, 18))
        solids.append(Solid(shape, middle, palette.rotation(), half, rock, corners))
    return solids


def sticks(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Thin bars that stand or lean together: canes, scaffolding, a camera's tripod."""
    wood = palette.material(depth)
    solids = []
    for _ in range(palette.count(2, 7)):
        lean = turn_y(palette.between(0, 2 * np.pi)) @ turn_x(palette.between(0.9, 1.57))
        length = size * palette.between(0.5, 1)
        foot = np.array([palette.between(-0.3, 0.3), 0, palette.between(-0.3, 0.3)]) * size
        rise = abs(lean[1, 2]) * length / 2
        bar = palette.rod(foot - (0, rise, 0), lean, length, wood)
        solids.append(bar)
    return solids


def cables(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Bent wires, hanging or coiled, in one or two planes."""
    metal = palette.material(depth, weak=0.6)
    solids = []
    for _ in range(palette.count(1, 2)):
        half = size * palette.rng.uniform(0.25, 0.6, 2)
        plate = card(np.array([0, -half[1], 0]), turn_y(palette.between(-1, 1)), half, metal)
        solids.append(replace(plate, outline=draw_stencil(palette.rng, "wires")))
    return solids


def sign(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A stencil on its own: letters, a wheel, a mesh, a tool."""
    families = ("letters", "wheel", "mesh", "gadget", "shard", "perforated")
    half = size * palette.rng.uniform(0.25, 0.5, 2)
    plate = card(np.array([0, -half[1], 0]), FACING, half, palette.material(depth))
    family = str(palette.rng.choice(families))
    return [replace(plate, outline=draw_stencil(palette.rng, family))]
