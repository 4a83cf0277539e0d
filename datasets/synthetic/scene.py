"""Parameters of a synthetic scene.

Coordinates are those of the left camera: x right, y down, z forward, in units of roughly a metre.
The right camera is shifted by `Rig.baseline` along x and has the same orientation, so that a point
at depth z has the disparity `focal * baseline / z` in both views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rig:
    """Two identical pinhole cameras side by side; rays pass through the pixel centres."""

    size: tuple[int, int]
    """Height and width in pixels."""
    focal: float
    """Focal length in pixels."""
    centre: tuple[float, float]
    """Principal point (x, y) in pixels, the same for both cameras."""
    baseline: float
    """Distance of the cameras."""


@dataclass(frozen=True, eq=False)
class Material:
    """Appearance of a surface: two textures of the atlas, a colour map and reflections."""

    texture: int
    """Index of the main texture, taken modulo the number of textures."""
    density: float
    """Texels of the main texture per unit of length."""
    turn: float
    """Rotation of the texture on the surface in radians."""
    shift: tuple[float, float]
    """Offset of the texture in texels."""
    colours: Array
    """(3, 4) affine map from texture colour (RGB, 1) to surface colour, both in [0, 1]."""
    detail: int
    """Index of the detail texture, which modulates the main texture."""
    detail_density: float
    """Texels of the detail texture per unit of length."""
    detail_strength: float
    """Strength of the modulation; 0 is off."""
    highlight: float
    """Strength of the Blinn-Phong highlight; 0 is matt."""
    shininess: float
    """Exponent of the highlight."""
    mirror: float = 0.0
    """Share of the light of the surroundings that is mirrored at perpendicular view."""
    surroundings: int = 0
    """Index of the mirrored texture, as if printed on a distant sphere."""
    glows: bool = False
    """True for the sky: it is not affected by light and shadows, and casts none."""


@dataclass(frozen=True, eq=False)
class Outline:
    """The silhouette of a card inside its rectangle [-1, 1]²."""

    kind: str
    """rectangle, disc, blob, foliage, lattice or stencil."""
    coefficients: Array
    """(N, 4), with a meaning that depends on the kind; see `outlines.py`."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed triangle mesh within [-1, 1]³."""

    vertices: Array
    """(V, 3) positions."""
    faces: NDArray[np.int64]
    """(F, 3) vertex indices of the triangles, with outward normals (b - a) x (c - a)."""
    normals: Array
    """(V, 3) outward directions of any length, interpolated for shading."""


@dataclass(frozen=True, eq=False)
class Solid:
    """An object: a unit shape, scaled, rotated and moved, optionally cut by planes.

    The unit shapes fill [-1, 1]³: the cube, the sphere, the cylinder along z, the square at z = 0
    (card), and any mesh. All but meshes are convex, and a camera may be inside, as in a room or
    under the sky. A mesh is entirely in front of the cameras and never cut.
    """

    shape: str
    """box, ellipsoid, cylinder, card or mesh."""
    centre: Array
    """(3,) position."""
    rotation: Array
    """(3, 3) whose columns are the axes of the shape."""
    half: Array
    """(3,) half extents along the axes of the shape."""
    material: Material
    cuts: Array
    """(N, 4) rows (a, b, c, d): half spaces ax + by + cz <= d of the unit shape; N may be 0."""
    outline: Outline | None = None
    """Silhouette of a card; None is the full rectangle."""
    casts_shadow: bool = True
    mesh: Mesh | None = None
    """The mesh, if the shape is `mesh`."""

    @property
    def depth_reach(self) -> float:
        """Largest extent along z from its centre."""
        return float(np.abs(self.rotation[2]) @ self.half)


@dataclass(frozen=True, eq=False)
class Light:
    """A point light; a very distant one is a sun."""

    position: Array
    """(3,) position."""
    colour: Array
    """(3,) linear intensity at distance zero."""
    reach: float
    """Distance at which the intensity is halved; infinite for a sun."""
    shadows: bool


@dataclass(frozen=True, eq=False)
class Sensor:
    """Parameters of exposure, optics, noise and encoding of the two cameras."""

    target: float
    """Median of the exposed image, linear in [0, 1]."""
    headroom: float
    """Upper limit of the brightest parts after exposure; values above 1 are overexposed."""
    gamma: tuple[float, float]
    """Gamma of the encoding of the left and right camera, near 2.2."""
    balance: Array
    """(2, 3) gains of the colour channels of the left and right camera."""
    blur: tuple[float, float]
    """Standard deviation of the blur of each camera in pixels; 0 is none."""
    focus: float
    """Share of the pixels that are behind the focal distance."""
    aperture: float
    """Standard deviation of the blur per pixel of disparity from the focus; 0 is sharp."""
    shake: tuple[float, float]
    """Motion (x, y) in pixels during the exposure, the same for both cameras."""
    read_noise: float
    """Standard deviation of the noise without light, for a full scale of 1."""
    shot_noise: float
    """Variance of the noise per unit of light."""
    seed: int
    """Seed of the noise."""


@dataclass(frozen=True, eq=False)
class Scene:
    """All parameters of a rendered pair."""

    kind: str
    """A key of `kinds.KINDS`."""
    rig: Rig
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: Array
    """(3,) linear ambient light."""
    haze: Array
    """(4,): colour of the haze, and its density per unit of length; 0 is clear air."""
    sensor: Sensor
