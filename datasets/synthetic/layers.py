"""Close-ups: cards and small things within a shallow depth, as in a collage or on a desk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.synthetic.growth import bush, cables, sign, sticks, stones
from datasets.synthetic.layout import (
    CLEAR,
    ENDLESS,
    Layout,
    draw_ambient,
    draw_lights,
    floating,
    looking_at,
    seen_from,
    slanted,
    spot,
)
from datasets.synthetic.palette import (
    FACING,
    UPRIGHT,
    Palette,
    backdrop,
    card,
    lit_from,
    moved,
    turn_y,
    turn_z,
)
from datasets.synthetic.scene import Solid
from datasets.synthetic.things import fence, lamp, rack, table, thing

_ON_TABLE = (*[thing] * 5, table, fence, lamp, rack, cables, sign, sticks, stones, bush)
"""What stands on a table, as often as each is met."""


def layers(palette: Palette) -> Layout:
    """Cards and curved things before one another within a shallow depth, on or off a table."""
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
    """A card of any outline that roughly faces the camera, 6 to 30 % of the picture wide."""
    depth = palette.between(1.1, far)
    half = palette.extent(1, depth) * palette.rng.uniform(0.06, 0.3, 2)
    lean = slanted(palette, 0.5, 0.4)
    turn = turn_z(palette.between(0, np.pi))
    sheet = card(np.zeros(3), turn @ lean, tuple(half), palette.material(depth))
    depth = max(depth, 1 + sheet.depth_reach)  # all of it behind depth 1
    return replace(sheet, centre=spot(palette, depth), outline=palette.outline())


def _on_table(palette: Palette, floor: float, far: float) -> list[Solid]:
    """Things that stand on the plane y = `floor`, up to the background."""
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
