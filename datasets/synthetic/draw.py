"""Draws whole scenes: a seed and a number decide everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .cast import Body, Rays, nearest, one_thread
from .kinds import KINDS, Layout
from .palette import Palette
from .scene import Array, Rig, Scene, Sensor

_PEAK = (12.0, 180.0)
"""Range of the largest disparity of a scene, in pixels of a picture 512 wide."""
_MARGIN = 0.93
"""Share of the allowed disparity that the nearest half percent of a picture may reach."""


def draw_scene(
    seed: int, number: int, size: tuple[int, int], max_disparity: int, kind: str | None = None
) -> Scene:
    """The scene of this number.

    Args:
        seed: of the whole series.
        number: of the scene within it.
        size: height and width in pixels.
        max_disparity: less than one percent of a picture lies above it.
        kind: one of `KINDS`; drawn from their shares if none.

    Raises:
        ValueError: the kind does not exist.
    """
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    names = list(KINDS)
    drawn = str(rng.choice(names, p=[one.share for one in KINDS.values()]))
    kind = kind or drawn
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(names)}")
    height, width = size
    low, high = np.log(KINDS[kind].focal)
    vivid = float(rng.uniform(0.2, 1.2))
    palette = Palette(rng, size, width * float(np.exp(rng.uniform(low, high))), vivid)
    centre = np.array([width - 1, height - 1]) / 2 + rng.normal(0, 0.02, 2) * width
    layout = KINDS[kind].draw(palette)
    rig = Rig(size, palette.focal, (float(centre[0]), float(centre[1])), baseline=0.0)
    rig = replace(rig, baseline=_baseline(palette, layout, rig, max_disparity))
    return Scene(
        kind,
        rig,
        tuple(layout.solids),
        tuple(layout.lights),
        layout.ambient,
        layout.haze,
        _sensor(palette),
    )


def _baseline(palette: Palette, layout: Layout, rig: Rig, max_disparity: int) -> float:
    """The baseline at which what is nearest in the picture has a disparity drawn at random."""
    low, high = np.array(_PEAK) * rig.size[1] / 512
    high = min(high, _MARGIN * max_disparity)
    peak = palette.spread(min(low, high / 2), high)
    # A coarse look at the scene; the nearest half percent of it may exceed the peak.
    rows = torch.linspace(0, rig.size[0] - 1, 40, dtype=torch.float64)
    columns = torch.linspace(0, rig.size[1] - 1, 80, dtype=torch.float64)
    rays = Rays(rig, 0.0, columns.repeat(40), rows.repeat_interleave(80))
    with one_thread():
        depth, _ = nearest([Body(solid, "cpu") for solid in layout.solids], rays)
    near = float(np.quantile(depth.numpy(), 0.005, method="lower"))
    return peak * near / rig.focal


def _sensor(palette: Palette) -> Sensor:
    balance: Array = np.repeat(np.exp(palette.rng.normal(0, 0.08, (1, 3))), 2, axis=0)
    if palette.chance(0.3):  # the two eyes see slightly different colours
        balance[1] *= np.exp(palette.rng.normal(0, 0.1) + palette.rng.normal(0, 0.03, 3))
    blur = palette.between(0.3, 0.9) if palette.chance(0.3) else 0.0
    uneven = palette.between(0, 0.5) if palette.chance(0.15) else 0.0
    return Sensor(
        target=palette.spread(0.1, 0.38),
        gamma=palette.between(1.8, 2.6),
        balance=balance,
        blur=(blur, blur + uneven),
        read_noise=palette.spread(0.0005, 0.008),
        shot_noise=palette.spread(1e-6, 4e-4),
        seed=int(palette.rng.integers(1 << 62)),
    )
