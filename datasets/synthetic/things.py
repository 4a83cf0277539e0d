"""Objects made of several solids: furniture, vehicles, people, plants, stones.

Each stands on the plane y = 0 at the origin; y points down, so it has negative y. `depth` is the
depth that textures are scaled for, `size` the length or height.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ea_psmnet.datasets.synthetic.outlines import draw_outline, draw_stencil
from ea_psmnet.datasets.synthetic.palette import (
    FACING,
    NO_CUTS,
    UPRIGHT,
    Palette,
    box,
    card,
    column,
    turn_x,
    turn_y,
)
from ea_psmnet.datasets.synthetic.scene import Array, Material, Outline, Solid

Make = Callable[[Palette, float, float], list[Solid]]
"""Draws an object with a palette, given the depth that textures are scaled for and its size."""


def thing(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A single solid of any shape."""
    half = size * palette.rng.uniform(0.3, 1, 3) / 2
    material = palette.material(depth)
    rotation = turn_y(palette.between(0, np.pi))
    if palette.chance(0.35):
        rotation = rotation @ UPRIGHT
    solid = palette.solid(np.zeros(3), rotation, half, material)
    reach = float(np.abs(rotation[1]) @ half)
    return [replace(solid, centre=np.array([0, -reach, 0]))]


def table(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A board on four thin legs, sometimes with a back, often with objects on it."""
    wide, deep = size * palette.between(0.4, 1) / 2, size * palette.between(0.4, 1) / 2
    tall, thick = size * palette.between(0.3, 0.8), size * palette.spread(0.01, 0.05)
    wood = palette.material(depth)
    solids = [box(np.array([0, -tall, 0]), np.array([wide, thick, deep]), wood)]
    # Faces of two solids must not coincide, as it would be random which of them is visible.
    leg = size * palette.spread(0.01, 0.04)
    for x in (1.2 * leg - wide, wide - 1.2 * leg):
        for z in (1.2 * leg - deep, deep - 1.2 * leg):
            middle = np.array([x, -tall / 2, z])
            solids.append(box(middle, np.array([leg, tall / 2, leg]), wood))
    if palette.chance(0.4):
        solids += _slats(palette, wood, (wide, tall), np.array([0, -tall, deep - leg]))
    for _ in range(palette.count(0, 3)):
        x, z = palette.rng.uniform(-1, 1, 2) * (wide, deep)
        shift = np.array([x, -tall - thick, z])
        small = thing(palette, depth, size * palette.between(0.1, 0.4))
        solids += [replace(solid, centre=solid.centre + shift) for solid in small]
    return solids


def _slats(palette: Palette, wood: Material, size: tuple[float, float], foot: Array) -> list[Solid]:
    """The back of a chair, of upright or horizontal boards; `size` is (half width, height)."""
    wide, tall = size
    lean = turn_x(palette.between(-0.3, 0.05))
    count, share = palette.count(2, 7), palette.between(0.2, 0.9)
    solids = []
    for k in range(count):
        place = (2 * k + 1) / count - 1  # from -1 to 1
        if count > 3:  # upright
            middle, half = (place * wide, -tall / 2), (wide * share / count, tall / 2)
        else:
            middle, half = (0.0, (place - 1) * tall / 2), (wide, tall / 2 * share / count)
        board = np.array([half[0], half[1], wide * 0.03])
        where = lean @ np.array([middle[0], middle[1], 0])
        solids.append(Solid("box", foot + where, lean, board, wood, NO_CUTS))
    return solids


def shelf(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A shelf of boards between two sides, with rows of books or boxes."""
    wide, deep, tall = size * palette.between(0.3, 0.8) / 2, size * 0.15, size
    thick = size * 0.012
    wood = palette.material(depth)
    sides = np.array([thick, tall / 2, deep])
    solids = [box(np.array([x, -tall / 2, 0]), sides, wood) for x in (-wide, wide)]
    levels = palette.count(2, 4)
    for level in range(levels):
        y = -tall * level / levels - thick
        solids.append(box(np.array([0, y, 0]), np.array([wide, thick, 0.97 * deep]), wood))
        x = -wide + 2 * thick
        for _ in range(palette.count(0, 4)):
            half = np.array([palette.between(0.08, 0.3) * wide, 0, deep * 0.8])
            half[1] = tall / levels * palette.between(0.2, 0.45)
            if x + 2 * half[0] < wide:
                middle = np.array([x + half[0], y - thick - half[1], 0])
                solids.append(box(middle, half, palette.material(depth)))
            x += 2 * half[0] * palette.between(1, 1.5)
    return solids


def cabinet(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A large box, mostly without texture, with a thin top, feet and handles."""
    paint = palette.material(depth, weak=0.8)
    metal = palette.material(depth, weak=0.8)
    wide, tall, deep = half = size * palette.rng.uniform(0.25, 0.5, 3)
    foot = tall * palette.between(0, 0.15)
    solids = [box(np.array([0, -foot - tall, 0]), half, paint)]
    if palette.chance(0.5):
        top = np.array([wide * 1.04, size * palette.spread(0.004, 0.02), deep * 1.04])
        solids.append(box(np.array([0, -foot - 2 * tall, 0]), top, paint))
    for x in (-0.9 * wide, 0.9 * wide):
        for z in (-0.9 * deep, 0.9 * deep):
            solids.append(column(np.array([x, -foot, z]), size * 0.02, 2 * foot + 1e-3, metal))
    for _ in range(palette.count(0, 4)):
        x, y = palette.rng.uniform(-0.8, 0.8, 2) * (wide, tall)
        handle = size * np.array([palette.spread(0.01, 0.08), palette.spread(0.01, 0.08), 0.015])
        solids.append(box(np.array([x, y - foot - tall, -deep]), handle, metal))
    return solids


def crate(palette: Palette, depth: float, size: float) -> list[Solid]:
    """An open box of boards with gaps between them."""
    wood = palette.material(depth)
    wide, tall, deep = size * palette.rng.uniform(0.25, 0.5, 3)
    count, share = palette.count(2, 6), palette.between(0.3, 0.9)
    thick, height = size * palette.spread(0.005, 0.02), share * tall / count
    solids = []
    for level in range(count):
        y = -(2 * level + 1) * tall / count
        for side in (-1, 1):
            front, flank = np.array([0, y, side * deep]), np.array([side * wide, y, 0])
            solids.append(box(front, np.array([wide, height, thick]), wood))
            # Shorter and lower than those in front, so that no faces coincide.
            solids.append(box(flank, np.array([thick, 0.97 * height, 0.99 * deep]), wood))
    for k in range(count):
        z = ((2 * k + 1) / count - 1) * deep
        board = np.array([0.98 * wide, thick, share * deep / count])
        solids.append(box(np.array([0, -thick, z]), board, wood))
    return solids


def car(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A body, a cabin with slanted windows, and wheels; `size` is its length."""
    paint, glass = palette.material(depth, weak=0.85), palette.glass(depth)
    shine = palette.spread(0.02, 0.4) if palette.chance(0.7) else 0.0
    paint = replace(paint, highlight=palette.between(0, 0.8), mirror=shine)
    wide, body_half = size * 0.2, size * palette.between(0.06, 0.09)
    low = size * 0.07
    solids = [box(np.array([0, -low - body_half, 0]), np.array([wide, body_half, size / 2]), paint)]
    cabin = np.array([wide * 0.9, size * palette.between(0.06, 0.1), size * 0.3])
    slant = np.array([[0, -0.6, 0.8, 0.65], [0, -0.6, -0.8, 0.65], [0.9, -0.3, 0, 0.9]])
    middle = np.array([0, -low - 2 * body_half - cabin[1], size * palette.between(-0.1, 0.1)])
    solids.append(Solid("box", middle, FACING, cabin, glass, slant))
    rubber = palette.material(depth, base=np.full(3, 0.15))
    half = np.array([size * 0.075, size * 0.075, size * 0.02])
    for x in (-wide, wide):
        for z in (-0.32 * size, 0.32 * size):
            axle = turn_y(np.pi / 2)
            middle = np.array([x, -half[0], z])
            solids.append(Solid("cylinder", middle, axle, half, rubber, NO_CUTS))
    return solids


def post(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A thin pole with a sign, an arm or nothing on top."""
    metal = palette.material(depth, weak=0.4)
    radius = size * palette.spread(0.006, 0.02)
    solids = [column(np.array([0, -size / 2, 0]), radius, size, metal)]
    half = size * palette.rng.uniform(0.06, 0.15, 2)
    top = np.array([0, -size + half[1], -1.5 * radius])
    if palette.chance(0.5):
        sign = card(top, turn_y(palette.between(-0.5, 0.5)), tuple(half), palette.material(depth))
        outline = draw_outline(palette.rng, "disc") if palette.chance(0.5) else None
        solids.append(replace(sign, outline=outline))
    elif palette.chance(0.5):
        arm = palette.rod(top, turn_y(palette.between(0, np.pi)), size * 0.4, metal)
        solids.append(arm)
    return solids


def figure(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A head, a trunk and two legs, roughly a person of height `size`."""
    clothes, skin = palette.material(depth), palette.material(depth, weak=0.6)
    wide = size * 0.12
    head = np.array([0.06, 0.07, 0.07]) * size
    trunk = np.array([wide, size * 0.2, wide * 0.7])
    solids = [
        Solid("ellipsoid", np.array([0, -0.93 * size, 0]), FACING, head, skin, NO_CUTS),
        Solid("ellipsoid", np.array([0, -0.66 * size, 0]), FACING, trunk, clothes, NO_CUTS),
    ]
    trousers = palette.material(depth)
    for side in (-1, 1):
        middle = np.array([side * wide / 2, -0.25 * size, side * palette.between(0, wide)])
        solids.append(column(middle, size * 0.045, size * 0.5, trousers))
    return solids


def fence(palette: Palette, depth: float, size: float) -> list[Solid]:
    """An upright lattice of length `size`."""
    half = (size / 2, size * palette.between(0.1, 0.3))
    plate = card(np.array([0, -half[1], 0]), FACING, half, palette.material(depth))
    drawn = palette.chance(0.5)
    mesh = draw_stencil(palette.rng, "mesh") if drawn else draw_outline(palette.rng, "lattice")
    return [replace(plate, outline=mesh)]


def rack(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A frame of thin bars along all three axes, like scaffolding or a cage."""
    metal = palette.material(depth, weak=0.5)
    half = size * palette.rng.uniform(0.25, 0.5, 3)
    bar = size * palette.spread(0.006, 0.025)
    levels = palette.count(2, 4)
    solids = []
    for x in (-1, 1):
        for z in (-1, 1):
            middle = half * (x, -1, z)
            solids.append(box(middle, np.array([bar, half[1], bar]), metal))
    for level in range(levels):
        y = -2 * half[1] * (level + 1) / levels
        for side in (-1, 1):
            across, along = np.array([0, y, side * half[2]]), np.array([side * half[0], y, 0])
            solids.append(box(across, np.array([half[0], 0.9, 0.9]) * (1, bar, bar), metal))
            solids.append(box(along, np.array([0.8, 0.8, half[2]]) * (bar, bar, 1), metal))
    return solids


def lamp(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A desk lamp: a foot, two thin arms and a shade."""
    metal = palette.material(depth, weak=0.6)
    turn = turn_y(palette.between(0, 2 * np.pi))
    foot = np.array([0.14, 0.14, 0.015]) * size
    solids = [Solid("cylinder", np.array([0, -foot[2], 0]), UPRIGHT, foot, metal, NO_CUTS)]
    end = np.zeros(3)
    for lean in (palette.between(-0.7, 0.1), palette.between(0.3, 1.4)):
        length = size * palette.between(0.35, 0.6)
        pose = turn @ turn_x(lean) @ UPRIGHT  # along z of the arm
        half = np.array([size * 0.012, size * 0.012, length / 2])
        up = -pose[:, 2] * np.sign(pose[1, 2])
        solids.append(Solid("cylinder", end + up * length / 2, pose, half, metal, NO_CUTS))
        end = end + up * length
    shade = np.array([0.13, 0.13, 0.1]) * size
    solids.append(Solid("ellipsoid", end, palette.rotation(), shade, metal, palette.facets(1)))
    return solids


def _leaf_card(palette: Palette, material: Material, middle: Array, half: float) -> Solid:
    """A square card of leaves with a random lean, but not edge-on to the front."""
    lean = turn_y(palette.between(-1.1, 1.1)) @ turn_x(palette.between(-0.9, 0.9))
    family = palette.rng.choice(["foliage", "foliage", "frond", "twigs", "waves"])
    plate = card(middle, lean, (half, half), material)
    return replace(plate, outline=_leafy(palette, str(family)))


def _leafy(palette: Palette, family: str) -> Outline:
    if family == "waves":
        return draw_outline(palette.rng, "foliage")
    return draw_stencil(palette.rng, family)


def _green(palette: Palette, depth: float) -> Material:
    """A material that is mostly green to brown."""
    hue = palette.rng.uniform((0.1, 0.25, 0.02), (0.5, 0.6, 0.25))
    return palette.material(depth, base=hue if palette.chance(0.8) else None)


def bush(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Cards of leaves at many depths within a ball of diameter `size`."""
    green = [_green(palette, depth) for _ in range(2)]
    solids = []
    for k in range(palette.count(4, 9)):
        shift = palette.rng.uniform((-0.3, -0.75, -0.35), (0.3, -0.3, 0.35)) * size
        half = size * palette.between(0.15, 0.35)
        solids.append(_leaf_card(palette, green[k % 2], shift, half))
    return solids


def grass(palette: Palette, depth: float, size: float) -> list[Solid]:
    """Cards of grass behind one another; `size` is their width."""
    green = _green(palette, depth)
    solids = []
    for _ in range(palette.count(2, 5)):
        half = size * np.array([palette.between(0.2, 0.5), palette.between(0.1, 0.35)])
        foot = np.array([palette.between(-0.3, 0.3), 0, palette.between(-0.5, 0.5)]) * size
        plate = card(foot - (0, half[1], 0), turn_y(palette.between(-0.8, 0.8)), half, green)
        solids.append(replace(plate, outline=draw_stencil(palette.rng, "grass")))
    return solids


def tree(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A trunk with cards of leaves, or with crossing cards of bare branches."""
    bark, green = palette.material(depth), _green(palette, depth)
    tall = size * palette.between(0.4, 0.7)
    solids = [column(np.array([0, -tall / 2, 0]), size * palette.spread(0.01, 0.05), tall, bark)]
    if palette.chance(0.3):  # bare: crossing cards of one crown
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
    """A heap of rocks: ellipsoids and boxes cut by many planes."""
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
    """Thin upright or leaning bars, like canes or a tripod."""
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
    """Bent wires in one or two planes."""
    metal = palette.material(depth, weak=0.6)
    solids = []
    for _ in range(palette.count(1, 2)):
        half = size * palette.rng.uniform(0.25, 0.6, 2)
        plate = card(np.array([0, -half[1], 0]), turn_y(palette.between(-1, 1)), half, metal)
        solids.append(replace(plate, outline=draw_stencil(palette.rng, "wires")))
    return solids


def sign(palette: Palette, depth: float, size: float) -> list[Solid]:
    """A single stencil: letters, a wheel, a mesh, a tool."""
    families = ("letters", "wheel", "mesh", "gadget", "shard", "perforated")
    half = size * palette.rng.uniform(0.25, 0.5, 2)
    plate = card(np.array([0, -half[1], 0]), FACING, half, palette.material(depth))
    family = str(palette.rng.choice(families))
    return [replace(plate, outline=draw_stencil(palette.rng, family))]
