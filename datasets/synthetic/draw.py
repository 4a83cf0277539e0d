"""Draws whole scenes, determined by a seed, a split and a number.

Some have a foreground of large plain blocks, or thin bars and frames. Both are hard for stereo: an
untextured face shows its depth at its edges only, and bars of a few pixels are lost at low
resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ea_psmnet.datasets.names import Split
from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.cast import Rays, nearest, one_thread
from ea_psmnet.datasets.synthetic.kinds import KINDS
from ea_psmnet.datasets.synthetic.palette import (
    FACING,
    NO_CUTS,
    UPRIGHT,
    Palette,
    slanted,
    spot,
    turn_z,
)
from ea_psmnet.datasets.synthetic.scene import Array, Material, Rig, Scene, Sensor, Solid
from ea_psmnet.tables import check_choice

_PEAK = (0.016, 0.4)
"""Range of the large disparity of a scene in image widths: 8 to 205 of 512 pixels."""
_TAIL = 0.4
"""Share of scenes whose large disparity is drawn uniformly; for others, log-uniformly."""
_FOREGROUND = 0.3
"""Share of scenes with a foreground."""
_BORDER = (0.44, 0.5)
"""Range of the distance of objects at the border from the image centre, in image widths."""
_MARGIN = 0.93
"""Share of the largest disparity that the nearest half percent of an image may reach."""
_NEAREST = (0.005, 0.01, 0.03, 0.1, 0.25)
"""Quantiles of depth that measure how near a scene is."""
_PEAK_AT = (0.4, 0.1, 0.2, 0.15, 0.15)
"""Probability of each quantile to have the large disparity."""
_RIGHT_NEARER = 1.5
"""Largest ratio of left to right depth at each quantile."""
_FREE_WAY = 0.9
"""Largest baseline as a share of the distance to the first surface on the right."""
_TRIES = 40
"""Largest number of times to shorten a baseline, by a tenth or more; rarely over three."""
_COARSE = (40, 80)
"""Rows and columns of the rays that measure depth."""


def draw_scene(
    seed: int,
    number: int,
    size: tuple[int, int],
    max_disparity: int,
    kind: str | None = None,
    *,
    split: Split = "train",
) -> Scene:
    """Draw a scene.

    Args:
        seed: Seed of the series of scenes, below 2**32.
        number: Number of the scene in the series, below 2**32.
        size: Height and width in pixels.
        max_disparity: Largest disparity in pixels; less than one percent of an image exceeds it.
        kind: A key of `KINDS`; random by default.
        split: The two splits of a seed have no scene in common.

    Raises:
        ValueError: The kind is unknown.
    """
    # Each is below 2**32, so that different lists seed the generator differently.
    entropy = [seed, number] if split == "train" else [seed, number, 1]
    rng = np.random.Generator(np.random.PCG64(entropy))
    names = list(KINDS)
    drawn = str(rng.choice(names, p=[one.share for one in KINDS.values()]))
    kind = kind or drawn
    check_choice("kind", kind, names)
    height, width = size
    low, high = np.log(KINDS[kind].focal)
    vivid = float(np.exp(rng.uniform(np.log(0.12), np.log(1.1))))
    palette = Palette(rng, size, width * float(np.exp(rng.uniform(low, high))), vivid)
    centre = np.array([width - 1, height - 1]) / 2 + rng.normal(0, 0.02, 2) * width
    layout = KINDS[kind].draw(palette)
    front = foreground(palette, KINDS[kind].near) if palette.chance(_FOREGROUND) else []
    solids = [*layout.solids, *front]
    rig = Rig(size, palette.focal, (float(centre[0]), float(centre[1])), baseline=0.0)
    # The coarse rays may miss thin objects.
    nearest_front = min((float(s.centre[2] - s.depth_reach) for s in front), default=np.inf)
    rig = replace(rig, baseline=_baseline(palette, solids, nearest_front, rig, max_disparity))
    return Scene(
        kind,
        rig,
        tuple(solids),
        tuple(layout.lights),
        layout.ambient,
        layout.haze,
        _sensor(palette),
    )


def _baseline(
    palette: Palette, solids: list[Solid], front: float, rig: Rig, max_disparity: int
) -> float:
    """Draw a baseline at which the nearest part of the left image has a random large disparity.

    It is shortened if the right eye would be beyond a wall, or so close to something that the right
    image has far larger disparities than the left one. The foreground at the depth `front` does not
    exceed the limit either.
    """
    low, high = np.array(_PEAK) * rig.size[1]
    high = min(high, _MARGIN * max_disparity)
    low = min(low, high / 2)
    peak = palette.between(low, high) if palette.chance(_TAIL) else palette.spread(low, high)
    aimed = palette.rng.choice(len(_NEAREST), p=_PEAK_AT)
    with one_thread():
        bodies = [Body(solid, "cpu") for solid in solids]
        near, holes = _look(bodies, rig)
        wanted = min(peak * near[aimed], high * min(near[0], front)) / rig.focal
        baseline = min(wanted, _FREE_WAY * _way_to_the_right(bodies))
        for _ in range(_TRIES):
            near_right, holes_right = _look(bodies, rig, baseline)
            too_near = (near / near_right).max() / _RIGHT_NEARER
            too_far_apart = rig.focal * baseline / near_right[0] / (_MARGIN * max_disparity)
            has_left = holes_right > 2 * holes
            excess = max(too_near, too_far_apart, np.inf if has_left else 0.0)
            if excess <= 1:
                break
            baseline *= np.clip(1 / excess, 0.5, 0.9)
    return float(baseline)


def _look(bodies: Sequence[Body], rig: Rig, eye: float = 0.0) -> tuple[Array, float]:
    """Measure depth with coarse rays from x = `eye`.

    Returns:
        The `_NEAREST` quantiles of depth, and the share of rays that miss everything, which is
        almost always 0 unless the camera has left the scene.
    """
    rows = torch.linspace(0, rig.size[0] - 1, _COARSE[0])
    columns = torch.linspace(0, rig.size[1] - 1, _COARSE[1])
    rays = Rays(rig, eye, columns.repeat(len(rows)), rows.repeat_interleave(len(columns)))
    depth = nearest(bodies, rays)[0].numpy()
    return np.quantile(depth, _NEAREST, method="lower"), float(np.isinf(depth).mean())


def _way_to_the_right(bodies: Sequence[Body]) -> float:
    """Return the distance from the left eye to the first surface on its right."""
    right = torch.tensor([[1.0], [0.0], [0.0]])
    # Only bodies whose bounding sphere intersects the x axis.
    near = [body for body in bodies if float(body.centre[1:].norm()) < body.radius]
    return min((float(body.seen(0.0, right)) for body in near), default=np.inf)


def _sensor(palette: Palette) -> Sensor:
    balance: Array = np.repeat(np.exp(palette.rng.normal(0, 0.08, (1, 3))), 2, axis=0)
    if palette.chance(0.3):  # cameras with slightly different colours
        balance[1] *= np.exp(palette.rng.normal(0, 0.1) + palette.rng.normal(0, 0.03, 3))
    gamma = np.full(2, palette.between(1.8, 2.6))
    if palette.chance(0.08):  # very different colours, as of two phones
        balance[1] *= np.exp(palette.rng.normal(0, 0.2, 3))
        gamma[1] *= palette.spread(0.7, 1.4)
    blur = palette.between(0.3, 1.3) if palette.chance(0.4) else 0.0
    uneven = palette.between(0, 0.5) if palette.chance(0.15) else 0.0
    way, length = palette.between(0, np.pi), palette.spread(1.5, 7) if palette.chance(0.08) else 0.0
    aperture = palette.spread(0.01, 0.15) if palette.chance(0.12) else 0.0
    return Sensor(
        target=palette.spread(0.1, 0.38),
        headroom=palette.spread(1.5, 4) if palette.chance(0.08) else 1.15,
        gamma=(float(gamma[0]), float(gamma[1])),
        balance=balance,
        blur=(blur, blur + uneven),
        focus=palette.between(0, 1),
        aperture=aperture * 512 / palette.size[1],
        shake=(length * float(np.cos(way)), length * float(np.sin(way))),
        read_noise=palette.spread(0.0005, 0.008),
        shot_noise=palette.spread(1e-6, 4e-4),
        seed=int(palette.rng.integers(1 << 62)),
    )


def foreground(palette: Palette, near: float) -> list[Solid]:
    """Draw a block, bars or both, behind the depth `near` and in front of most of the scene."""
    solids: list[Solid] = []
    with_block, with_bars = [(True, False), (False, True), (True, True)][palette.count(0, 2)]
    if with_block:
        solids.append(_block(palette, near))
    if with_bars:
        solids += _frame(palette, near) if palette.chance(0.4) else _bars(palette, near)
    return solids


def _block(palette: Palette, near: float) -> Solid:
    """Draw a plain cupboard, pillar, stone or board, a third to a half of the image wide."""
    front = near * palette.between(1, 1.6)
    wide = palette.extent(palette.between(0.33, 0.5), front)
    half = wide / 2 * np.array([1, palette.spread(0.5, 2), palette.spread(0.05, 1)])
    shape = str(palette.rng.choice(["box", "cut box", "cylinder"], p=[0.65, 0.15, 0.2]))
    rotation = slanted(palette, 0.4, 0.2, most=0.8)
    if shape == "cylinder":
        rotation, half = rotation @ UPRIGHT, half[[0, 0, 1]]
    cuts = palette.facets(palette.count(1, 3)) if shape == "cut box" else NO_CUTS
    solid = Solid(shape.split()[-1], np.zeros(3), rotation, half, palette.paint(front), cuts)
    return replace(solid, centre=_place(palette, front + solid.depth_reach))


def _bars(palette: Palette, near: float) -> list[Solid]:
    """Draw one to five bars across much of the image, most of them upright."""
    solids = []
    for _ in range(palette.count(1, 5)):
        depth = near * palette.between(1.1, 2)
        lean = palette.rng.normal(0, 0.15) + np.pi / 2 * palette.chance(0.25)
        rotation = turn_z(lean) @ slanted(palette, 0.2, 0.2, most=0.5)
        length = palette.extent(palette.spread(0.2, 1.2), depth)
        bar = _bar(palette, depth, rotation, length, _coating(palette, depth))
        solids.append(_behind(bar, _place(palette, depth), near))
    return solids


def _frame(palette: Palette, near: float) -> list[Solid]:
    """Draw two posts with one to three bars between them, like a window or a rail."""
    depth = near * palette.between(1.1, 2)
    wide, tall = (palette.extent(palette.between(0.12, 0.5), depth) for _ in range(2))
    pose = turn_z(palette.rng.normal(0, 0.1)) @ slanted(palette, 0.3, 0.15, most=0.5)
    place, coating = _place(palette, depth), _coating(palette, depth)
    upright = [(np.array([side * wide / 2, 0, 0]), FACING, tall) for side in (-1, 1)]
    levels = [palette.between(-0.5, 0.5) for _ in range(palette.count(1, 3))]
    level = [(np.array([0, y * tall, 0]), turn_z(np.pi / 2), wide) for y in levels]
    solids = []
    for middle, turn, length in upright + level:
        bar = _bar(palette, depth, pose @ turn, length, coating)
        solids.append(_behind(bar, place + pose @ middle, near))
    return solids


def _bar(
    palette: Palette, depth: float, rotation: Array, length: float, coating: Material
) -> Solid:
    """Draw a bar along y, 2 to 6 of 512 pixels thick."""
    thick = palette.extent(palette.spread(0.004, 0.012), depth) / 2
    if palette.chance(0.5):
        half = np.array([thick, thick, length / 2])
        return Solid("cylinder", np.zeros(3), rotation @ UPRIGHT, half, coating, NO_CUTS)
    half = np.array([thick, length / 2, thick * palette.between(0.5, 2)])
    return Solid("box", np.zeros(3), rotation, half, coating, NO_CUTS)


def _coating(palette: Palette, depth: float) -> Material:
    return palette.paint(depth) if palette.chance(0.5) else palette.material(depth, weak=0.4)


def _place(palette: Palette, depth: float) -> Array:
    """Draw a place in the image, in a third of the cases at its left or right border."""
    place = spot(palette, depth)
    if palette.chance(1 / 3):
        aside = palette.rng.choice([-1, 1]) * palette.between(*_BORDER)
        place[0] = palette.extent(aside, depth)
    return place


def _behind(solid: Solid, place: Array, near: float) -> Solid:
    """Move the solid to this place, or further along the ray, so that it is behind `near`."""
    depth = max(place[2], near + solid.depth_reach)
    return replace(solid, centre=place * (depth / place[2]))
