"""Draws whole scenes: a seed, a split and a number decide everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from datasets.sceneflow import Split
from datasets.synthetic.body import Body
from datasets.synthetic.cast import nearest
from datasets.synthetic.foreground import foreground
from datasets.synthetic.kinds import KINDS
from datasets.synthetic.palette import Palette
from datasets.synthetic.rays import Rays, one_thread
from datasets.synthetic.scene import Array, Rig, Scene, Sensor, Solid

_PEAK = (0.016, 0.4)
"""Range of a scene's large disparities, in widths of the picture: 8 to 205 of 512 pixels."""
_TAIL = 0.4
"""Share of the scenes whose large disparity is drawn evenly; of the others, by its logarithm."""
_FOREGROUND = 0.3
"""Share of the scenes with something large and plain, or thin, close before them."""
_MARGIN = 0.93
"""Share of the allowed disparity that the nearest half percent of a picture may reach."""
_NEAREST = (0.005, 0.01, 0.03, 0.1, 0.25)
"""Shares of a picture whose depths tell how near it is."""
_PEAK_AT = (0.4, 0.1, 0.2, 0.15, 0.15)
"""How often it is at each of these that the disparity reaches the largest one drawn."""
_RIGHT_NEARER = 1.5
"""How many times as near the right picture may be as the left one, at each of these shares."""
_FREE_WAY = 0.9
"""Share of the way from the left eye to the first surface on its right that the right eye goes."""
_TRIES = 40
"""Times a baseline is shortened, by a tenth or more each; three are many."""
_COARSE = (40, 80)
"""Rows and columns of the rays that look for what is nearest."""


def draw_scene(
    seed: int,
    number: int,
    size: tuple[int, int],
    max_disparity: int,
    kind: str | None = None,
    *,
    split: Split = "train",
) -> Scene:
    """The scene of this number.

    Args:
        seed: of the whole series, below 2**32.
        number: of the scene within it, below 2**32.
        size: height and width in pixels.
        max_disparity: less than one percent of a picture lies above it.
        kind: one of `KINDS`; drawn from their shares if none.
        split: the two splits of a seed have no scene in common.

    Raises:
        ValueError: the kind does not exist.
    """
    # Each below 2**32, so that no two of these lists are the same words to the generator.
    entropy = [seed, number] if split == "train" else [seed, number, 1]
    rng = np.random.Generator(np.random.PCG64(entropy))
    names = list(KINDS)
    drawn = str(rng.choice(names, p=[one.share for one in KINDS.values()]))
    kind = kind or drawn
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(names)}")
    height, width = size
    low, high = np.log(KINDS[kind].focal)
    vivid = float(np.exp(rng.uniform(np.log(0.12), np.log(1.1))))
    palette = Palette(rng, size, width * float(np.exp(rng.uniform(low, high))), vivid)
    centre = np.array([width - 1, height - 1]) / 2 + rng.normal(0, 0.02, 2) * width
    layout = KINDS[kind].draw(palette)
    front = foreground(palette, KINDS[kind].near) if palette.chance(_FOREGROUND) else []
    solids = [*layout.solids, *front]
    rig = Rig(size, palette.focal, (float(centre[0]), float(centre[1])), baseline=0.0)
    # What is thin may be missed by a coarse look.
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
    """The baseline at which what is nearest in the left picture has a disparity drawn at random.

    It is shorter where the right eye would stand beyond a wall, or so close before something that
    its picture has far larger disparities than the left one; and before `front`, the depth of what
    stands close, too, nothing passes the limit.
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
    """A coarse look from x = `eye`.

    Returns:
        The depths that the `_NEAREST` shares of the picture lie before, and the share of the
        picture that shows nothing: almost always none, or the camera has left the scene.
    """
    rows = torch.linspace(0, rig.size[0] - 1, _COARSE[0])
    columns = torch.linspace(0, rig.size[1] - 1, _COARSE[1])
    rays = Rays(rig, eye, columns.repeat(len(rows)), rows.repeat_interleave(len(columns)))
    depth = nearest(bodies, rays)[0].numpy()
    return np.quantile(depth, _NEAREST, method="lower"), float(np.isinf(depth).mean())


def _way_to_the_right(bodies: Sequence[Body]) -> float:
    """How far the left eye is from the first surface on its right."""
    right = torch.tensor([[1.0], [0.0], [0.0]])
    # Only bodies whose bounding sphere the x axis passes.
    near = [body for body in bodies if float(body.centre[1:].norm()) < body.radius]
    return min((float(body.seen(0.0, right)) for body in near), default=np.inf)


def _sensor(palette: Palette) -> Sensor:
    balance: Array = np.repeat(np.exp(palette.rng.normal(0, 0.08, (1, 3))), 2, axis=0)
    if palette.chance(0.3):  # the two eyes see slightly different colours
        balance[1] *= np.exp(palette.rng.normal(0, 0.1) + palette.rng.normal(0, 0.03, 3))
    gamma = np.full(2, palette.between(1.8, 2.6))
    if palette.chance(0.08):  # they see very different ones, as two phones side by side do
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
