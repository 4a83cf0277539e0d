"""Random meshes that are not convex: rings, knots, coils, vases, horns, lumps, statues.

Each is a surface of rings along a spine. The spine bends; the rings vary in radius, twist, and are
round, ribbed or lumpy, so that few random draws give very different objects.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.synthetic.scene import Array, Mesh

_SPOKES = (24, 14)
"""Points per ring, of thick and of thin meshes."""
_RINGS = 28
"""Number of rings of a short spine."""
_THIN = 40
"""Meshes with more rings are thin."""

_Rings = tuple[Array, Array, Array, Array]
"""Centres (R, 3), the two axes (R, 3) of each ring's plane, and radii (R,)."""


def draw_sculpture(rng: np.random.Generator) -> Mesh:
    """Draw a random mesh that fills [-1, 1]³."""
    names = list(_FORMS)
    name = str(rng.choice(names, p=[_SHARES[name] for name in names]))
    closed, rings = _FORMS[name](rng)
    centres, across, beside, radii = rings
    spokes = _SPOKES[len(radii) > _THIN]
    around = np.arange(spokes) * 2 * np.pi / spokes
    along = np.linspace(0, 1, len(radii))
    reach = radii[:, None] * _section(rng, along[:, None], around, closed)  # (R, S)
    x, y = reach * np.cos(around), reach * np.sin(around)
    points = centres[:, None] + x[..., None] * across[:, None] + y[..., None] * beside[:, None]
    vertices = points.reshape(-1, 3)
    low, high = vertices.min(0), vertices.max(0)
    vertices = (vertices - (low + high) / 2) / ((high - low) / 2)
    return _outwards(vertices, _faces(len(radii), spokes, closed))


def _section(rng: np.random.Generator, along: Array, around: Array, closed: bool) -> Array:
    """Draw factors on the radius, (R, S): randomly flattened, ribbed, lumpy and twisted."""
    turns = int(rng.integers(-2, 3)) if rng.random() < 0.4 else 0
    angle = around + 2 * np.pi * turns * along
    factor = np.ones_like(angle)
    if rng.random() < 0.5:
        factor /= np.sqrt(1 + rng.uniform(0, 3) * np.cos(angle) ** 2)
    if rng.random() < 0.4:
        factor *= 1 + rng.uniform(0.05, 0.4) * np.cos(int(rng.integers(3, 8)) * angle)
    for _ in range(int(rng.integers(0, 7))):
        waves, lobes = int(rng.integers(1, 7)), int(rng.integers(0, 4))
        phase = 2 * np.pi * (waves * along + rng.random())
        factor *= 1 + rng.uniform(0.05, 0.25) * np.cos(lobes * around + phase)
    return factor


def _ring(rng: np.random.Generator) -> tuple[bool, _Rings]:
    """A ring, or a knot that winds several times around a ring."""
    windings = int(rng.choice([1, 1, 2, 3]))
    waves = int(rng.integers(1, 5)) if windings == 1 else int(rng.choice([3, 5, 7]))
    wobble = rng.uniform(0, 0.3) if windings == 1 else rng.uniform(0.3, 0.45)
    along = np.arange(_RINGS * windings) / (_RINGS * windings)
    phase = 2 * np.pi * waves * along + rng.uniform(0, 2 * np.pi)
    turn, far = 2 * np.pi * windings * along, 1 + wobble * np.cos(phase)
    spine = np.stack([far * np.cos(turn), far * np.sin(turn), wobble * np.sin(phase)], 1)
    thick = rng.uniform(0.1, 0.5) if windings == 1 else rng.uniform(0.08, 0.2)
    return True, (*_framed(spine, True), np.full(len(spine), thick))


def _coil(rng: np.random.Generator) -> tuple[bool, _Rings]:
    """A spring, a spiral or a horn."""
    windings = rng.uniform(0.6, 4)
    along = np.linspace(0, 1, int(_RINGS * max(1, windings)))
    far = 1 + (rng.uniform(-0.9, 0.5) if rng.random() < 0.5 else 0) * along
    turn, pitch = 2 * np.pi * windings * along, rng.uniform(0.5, 1.2)
    spine = np.stack([far * np.cos(turn), far * np.sin(turn), pitch * windings * along], 1)
    taper = 1 - rng.uniform(0, 0.9) * along
    radii = rng.uniform(0.08, 0.3) * taper * _rounded(along, 0.04)
    return False, (*_framed(spine, False), radii)


def _bar(rng: np.random.Generator) -> tuple[bool, _Rings]:
    """A wavy bar of varying thickness, like a club, a statue or a root."""
    along = np.linspace(0, 1, _RINGS)
    spine = np.zeros((_RINGS, 3))
    spine[:, 2] = 2 * along
    for waves in (0.5, 1.0, 1.5):
        bend = rng.normal(0, 0.25, 2) / waves
        spine[:, :2] += np.cos(2 * np.pi * (waves * along + rng.random()))[:, None] * bend
    thick = rng.uniform(0.12, 0.4)
    swell = sum(rng.normal(0, 0.35) * np.cos(np.pi * k * along) for k in (1, 2, 3, 4, 5))
    return False, (*_framed(spine, False), thick * np.exp(swell) * _rounded(along, 0.25))


def _lump(rng: np.random.Generator) -> tuple[bool, _Rings]:
    """A ball, which the section turns into stones, fruit and blobs."""
    along = np.linspace(0, 1, _RINGS)
    spine = np.zeros((_RINGS, 3))
    spine[:, 2] = -np.cos(np.pi * along)
    return False, (*_framed(spine, False), np.sin(np.pi * along))


def _vessel(rng: np.random.Generator) -> tuple[bool, _Rings]:
    """A vase, bowl, cup or bell: up the outside, over the rim and down the inside."""
    height = np.linspace(0, 1, _RINGS // 2)
    swell = sum(rng.normal(0, 0.3) * np.cos(np.pi * k * height) for k in (1, 2, 3))
    outer = np.exp(swell) * rng.uniform(0.3, 0.9)
    wall = rng.uniform(0.05, 0.25) * outer.min()
    inner = np.maximum(outer - wall, 0.2 * outer)[::-1]
    floor = rng.uniform(0.05, 0.3)
    z = np.concatenate([[0.0], height, floor + (1 - floor) * height[::-1], [floor]])
    radii = np.concatenate([[0.0], outer, inner, [0.0]])
    spine = np.zeros((len(z), 3))
    spine[:, 2] = z
    level = np.eye(3)[[0, 1]][:, None].repeat(len(z), 1)
    return False, (spine, level[0], level[1], radii)


_FORMS: dict[str, Callable[[np.random.Generator], tuple[bool, _Rings]]] = {
    "ring": _ring,
    "coil": _coil,
    "bar": _bar,
    "lump": _lump,
    "vessel": _vessel,
}
_SHARES = {"ring": 0.2, "coil": 0.15, "bar": 0.3, "lump": 0.2, "vessel": 0.15}


def _rounded(along: Array, end: float) -> Array:
    """Return 1, falling to 0 on a circle at both ends, within the share `end` of the length."""
    gap = (np.minimum(along, 1 - along) / end).clip(0, 1)
    return np.sqrt(1 - (1 - gap) ** 2)


def _framed(spine: Array, closed: bool) -> tuple[Array, Array, Array]:
    """Return the spine (R, 3) and two axes orthogonal to it.

    The axes follow z for a spine around z, and x for a spine along z, so that rings never flip.
    """
    around = np.roll(spine, -1, 0) - np.roll(spine, 1, 0)
    ahead = around if closed else np.gradient(spine, axis=0)
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    fixed = np.array([0.0, 0, 1]) if np.abs(ahead[:, 2]).max() < 0.95 else np.array([1.0, 0, 0])
    across = np.cross(fixed, ahead)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return spine, across, np.cross(ahead, across)


def _faces(rings: int, spokes: int, closed: bool) -> NDArray[np.int64]:
    """Return (F, 3) triangles between successive rings, and from last to first if closed."""
    ring = np.arange(rings if closed else rings - 1)[:, None]
    spoke = np.arange(spokes)[None]
    after, beside = (ring + 1) % rings, (spoke + 1) % spokes
    a, b = ring * spokes + spoke, ring * spokes + beside
    c, d = after * spokes + spoke, after * spokes + beside
    return np.stack([a, b, d, a, d, c], -1).reshape(-1, 3)


def _outwards(vertices: Array, faces: NDArray[np.int64]) -> Mesh:
    """Return the mesh with outward faces, and the mean normals of the faces at each vertex."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    facing = np.cross(b - a, c - a)
    if (facing * a).sum() < 0:  # six times the volume
        faces, facing = faces[:, ::-1], -facing
    around = [np.bincount(faces.flatten(), x.repeat(3), len(vertices)) for x in facing.T]
    return Mesh(vertices, faces, np.stack(around, 1))
