"""Scenes of unrelated objects: in mid-air as in FlyingThings3D, on a floor, or on a table.

`flying` has objects in mid-air. `stage` has, as FlyingThings3D, three layers far apart: a distant
view with almost no disparity, blocks close together, and large objects in mid-air. `layers` are
close-ups of cards and small objects within a shallow depth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ea_psmnet.datasets.synthetic.palette import (
    CLEAR,
    ENDLESS,
    FACING,
    NO_CUTS,
    UPRIGHT,
    Layout,
    Palette,
    backdrop,
    box,
    card,
    column,
    draw_ambient,
    draw_haze,
    draw_lights,
    floating,
    lit_from,
    looking_at,
    moved,
    seen_from,
    slanted,
    spot,
    turn_x,
    turn_y,
    turn_z,
)
from ea_psmnet.datasets.synthetic.scene import Solid
from ea_psmnet.datasets.synthetic.things import (
    Make,
    bush,
    cabinet,
    cables,
    car,
    crate,
    fence,
    figure,
    lamp,
    post,
    rack,
    shelf,
    sign,
    sticks,
    stones,
    table,
    thing,
    tree,
)

_NEAREST = 1.0
"""Smallest depth of objects in mid-air."""
_THINGS: tuple[Make, ...] = (
    *(table, table, cabinet, crate, shelf, car, post, figure),
    *(rack, lamp, bush, tree, sticks, stones),
)
"""Objects in mid-air besides single solids."""


def flying(palette: Palette) -> Layout:
    """Draw many objects in mid-air in front of a wall, in a hall or under a dome."""
    far = palette.spread(2, 15)
    solids = [backdrop(_background(palette, far))]
    for _ in range(palette.count(8, 32)):
        solids.append(floating(palette, _NEAREST, far * 0.9))
    for _ in range(palette.count(0, 7)):
        solids += tumbling(palette, _NEAREST, far * 0.9)
    lights = draw_lights(palette, far, palette.chance(0.6))
    haze = draw_haze(palette, far, 0.1)
    return Layout(solids, lights, draw_ambient(palette), haze)


def tumbling(
    palette: Palette, near: float, far: float, make: Make | None = None, share: float = 0.7
) -> list[Solid]:
    """Draw a piece of furniture, a plant or a vehicle in any pose behind `near`.

    `make` draws the object, one of `_THINGS` if None; it covers up to `share` of the image's width.
    """
    make = make or palette.rng.choice(np.array(_THINGS, dtype=object))
    depth = palette.spread(near, far)
    size = palette.extent(palette.spread(0.12, share), depth)
    depth = max(depth, near + size)  # all of it behind `near`
    pose, place = palette.rotation(), spot(palette, depth)
    lifted = np.array([0, size / 2, 0])  # its centre, not its foot, is at that place
    return [moved(part, pose, place + pose @ lifted) for part in make(palette, depth, size)]


def _background(palette: Palette, far: float) -> Solid:
    """Draw a wall at about `far`, or a dome or a hall of about that size around the camera."""
    paper = palette.material(far, weak=0.1)
    style = palette.rng.choice(["wall", "dome", "hall"], p=[0.5, 0.2, 0.3])
    if style == "wall":
        wide = far * ENDLESS
        return card(
            np.array([0, 0, far]), slanted(palette, 0.25, 0.2, most=0.5), (wide, wide), paper
        )
    if style == "dome":
        half = far * palette.rng.uniform(0.8, 1.3, 3)
        return Solid("ellipsoid", np.zeros(3), palette.rotation(), half, paper, NO_CUTS)
    half = far * palette.rng.uniform(0.6, 1.2, 3)
    # Up to 34 degrees sideways and 29 up or down: a corner, the floor or the ceiling is visible.
    pose = turn_y(palette.between(-0.6, 0.6)) @ turn_x(palette.between(-0.5, 0.5))
    return Solid("box", np.zeros(3), pose, half, paper, NO_CUTS)


def stage(palette: Palette) -> Layout:
    """Draw one or two dozen blocks, and half a dozen objects in front of them."""
    height = palette.between(0.7, 2.0)  # of the camera above the floor
    far = palette.spread(3, 9)  # of the last blocks
    radius = far * palette.spread(4, 40)
    floor = card(np.array([0, height, 0]), UPRIGHT, (radius, radius), palette.material(far / 2))
    structure = [backdrop(_view(palette, radius)), backdrop(floor)]
    blocks: list[Solid] = []
    for _ in range(palette.count(12, 28)):
        blocks += _block(palette, height, far)
    # The horizon is in the upper half of most images; the camera has some roll.
    pose = turn_z(palette.rng.normal(0, 0.2)) @ turn_x(palette.between(0, 0.45))
    solids = seen_from(blocks, structure, pose, 0.2 * far)
    for _ in range(palette.count(2, 5)):
        solids += tumbling(palette, _NEAREST, 0.6 * far)
    if palette.chance(0.4):
        solids += tumbling(palette, _NEAREST, 0.6 * far, cabinet, 1.2)
    solids += [floating(palette, _NEAREST, 0.6 * far) for _ in range(palette.count(1, 6))]
    lights = [lit_from(x, pose) for x in draw_lights(palette, far, palette.chance(0.6))]
    return Layout(solids, lights, draw_ambient(palette), draw_haze(palette, radius, 0.1))


def _view(palette: Palette, radius: float) -> Solid:
    """Draw a dome with a texture that is several times as wide as its visible part."""
    picture = replace(palette.material(1.0, weak=0.1), glows=True, mirror=0.0)
    picture = replace(picture, density=palette.spread(0.4, 1.5) * palette.focal / radius)
    half = np.full(3, radius)
    return Solid("ellipsoid", np.zeros(3), palette.rotation(), half, picture, NO_CUTS)


def _block(palette: Palette, height: float, far: float) -> list[Solid]:
    """Draw a box, a column or another solid on the floor, 8 to 45 % of the image wide."""
    depth = palette.between(far / 3, far)
    size = palette.extent(palette.spread(0.08, 0.45), depth)
    x = palette.between(-0.7, 0.7) * palette.extent(1, depth)
    foot = np.array([x, height, depth])
    turn = turn_y(palette.between(0, np.pi))
    if palette.chance(0.25):
        return [moved(part, turn, foot) for part in thing(palette, depth, size)]
    half = size * palette.rng.uniform(0.4, 1, 3) / 2
    half[1] *= palette.spread(0.8, 2.5)
    material = palette.material(depth, weak=0.08)
    middle = np.array([0, -half[1], 0])
    if palette.chance(0.3):
        block = column(middle, half[0], 2 * half[1], material)
    else:
        block = box(middle, half, material)
    return [moved(block, turn, foot)]


_ON_TABLE = (*[thing] * 5, table, crate, fence, lamp, rack, cables, sign, sticks, stones, bush)
"""Objects on a table; repetitions are more likely."""


def layers(palette: Palette) -> Layout:
    """Draw cards and curved objects within a shallow depth, with or without a table."""
    far = palette.spread(1.25, 6)
    lean = slanted(palette, 0.15, 0.15, most=0.4)
    paper = palette.material(far, weak=0.2)
    wide = far * ENDLESS
    structure = [backdrop(card(np.array([0, 0, far]), lean, (wide, wide), paper))]
    pose, things = FACING, [_sheet(palette, far) for _ in range(palette.count(3, 9))]
    if palette.chance(0.6):
        floor = palette.between(0.2, 1.0)  # below the camera
        middle = (1 + far) / 2
        pose = looking_at(palette, np.array([0, floor - palette.between(0, 0.2), middle]))
        board = palette.material(1.5, weak=0.3)
        structure.append(card(np.array([0, floor, far]), UPRIGHT, (wide, far * 1.5), board))
        things += _on_table(palette, floor, far)
    else:
        things += [floating(palette, 1.0, far) for _ in range(palette.count(2, 12))]
    solids = seen_from(things, structure, pose, 0.6)
    lights = [lit_from(x, pose) for x in draw_lights(palette, far, palette.chance(0.6))]
    return Layout(solids, lights, draw_ambient(palette), CLEAR)


def _sheet(palette: Palette, far: float) -> Solid:
    """Draw a card of any outline that roughly faces the camera, with half sides of 6 to 30 %."""
    depth = palette.between(1.1, far)
    half = palette.extent(1, depth) * palette.rng.uniform(0.06, 0.3, 2)
    lean = slanted(palette, 0.5, 0.4)
    turn = turn_z(palette.between(0, np.pi))
    sheet = card(np.zeros(3), turn @ lean, tuple(half), palette.material(depth))
    depth = max(depth, 1 + sheet.depth_reach)  # all of it behind depth 1
    return replace(sheet, centre=spot(palette, depth), outline=palette.outline())


def _on_table(palette: Palette, floor: float, far: float) -> list[Solid]:
    """Draw objects on the plane y = `floor`, up to the background."""
    makers = np.array(_ON_TABLE, dtype=object)
    solids: list[Solid] = []
    for _ in range(palette.count(4, 14)):
        depth = palette.between(1.0, far * 0.95)
        where = np.array([spot(palette, depth)[0], floor, depth])
        make = palette.rng.choice(makers)
        parts = make(palette, depth, palette.extent(palette.spread(0.08, 0.35), depth))
        turn = turn_y(palette.between(-0.8, 0.8))
        solids += [moved(part, turn, where) for part in parts]
    return solids
