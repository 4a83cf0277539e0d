"""What a synthetic scene is: plain parameters, before anything is rendered.

Coordinates are those of the left camera: x right, y down, z forward, in units that are roughly
metres. The right camera stands `Rig.baseline` further along x and looks the same way, so that a
point at depth z has the disparity `focal * baseline / z` in both views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rig:
    """Two equal pinhole cameras side by side; pixel (x, y) is seen through its centre."""

    size: tuple[int, int]
    """Height and width in pixels."""
    focal: float
    """Focal length in pixels."""
    centre: tuple[float, float]
    """Principal point (x, y) in pixels, the same for both cameras."""
    baseline: float
    """Distance between the cameras."""


@dataclass(frozen=True, eq=False)
class Material:
    """How a surface looks: two textures of the atlas, a colour map and a highlight."""

    texture: int
    """Number of the main texture, taken modulo the atlas's length."""
    density: float
    """Texels of the main texture a unit of length."""
    turn: float
    """Angle of the texture on the surface, in radians."""
    shift: tuple[float, float]
    """Offset of the texture, in texels."""
    colours: Array
    """(3, 4), the affine map from texture colour (RGB, 1) to surface colour, both in [0, 1]."""
    detail: int
    """Number of a second, fine texture that modulates the first."""
    detail_density: float
    """Texels of the second texture a unit of length."""
    detail_strength: float
    """0 leaves the main texture alone."""
    highlight: float
    """Strength of the Blinn-Phong highlight; 0 is matt."""
    shininess: float
    """Exponent of the highlight."""
    mirror: float = 0.0
    """Share of the surroundings' light that it sends back, seen straight on."""
    surroundings: int = 0
    """Number of the texture that is mirrored, as if printed on a sphere far away."""
    glows: bool = False
    """True for the sky: no light changes it, and it neither casts nor receives shadows."""


@dataclass(frozen=True, eq=False)
class Outline:
    """The silhouette of a card inside its rectangle [-1, 1]²."""

    kind: str
    """One of `OUTLINES`."""
    coefficients: Array
    """(N, 4), read by the kind in its own way; see `outlines.py`."""


OUTLINES = ("rectangle", "disc", "blob", "foliage", "lattice", "stencil")
SHAPES = ("box", "ellipsoid", "cylinder", "card", "mesh")


@dataclass(frozen=True, eq=False)
class Mesh:
    """A closed skin of triangles within [-1, 1]³, of any form."""

    vertices: Array
    """(V, 3)."""
    faces: NDArray[np.int64]
    """(F, 3) vertices of each triangle, with outward normals (b - a) x (c - a)."""
    normals: Array
    """(V, 3) outward directions, of any length, between which the shading bends evenly."""


@dataclass(frozen=True, eq=False)
class Solid:
    """One object: a unit shape, scaled, turned and moved, perhaps cut by planes.

    The unit shapes fill [-1, 1]³: the cube, the sphere, the cylinder along z, for a card the
    square at z = 0, and any mesh. All but meshes are convex, and a camera may be inside one, as in
    a room or under the sky; a mesh lies wholly before the cameras and is never cut.
    """

    shape: str
    """One of `SHAPES`."""
    centre: Array
    """(3,)."""
    rotation: Array
    """(3, 3); its columns are the shape's own axes."""
    half: Array
    """(3,) half extents along the shape's own axes."""
    material: Material
    cuts: Array
    """(N, 4) rows (a, b, c, d) that keep ax + by + cz <= d of the unit shape; N may be 0."""
    outline: Outline | None = None
    """For cards only; none is the full rectangle."""
    casts_shadow: bool = True
    mesh: Mesh | None = None
    """For meshes only."""

    @property
    def depth_reach(self) -> float:
        """How far it can extend along z from its centre."""
        return float(np.abs(self.rotation[2]) @ self.half)


@dataclass(frozen=True, eq=False)
class Light:
    """A point light; one that stands very far away is a sun."""

    position: Array
    """(3,)."""
    colour: Array
    """(3,) linear intensity at the distance zero."""
    reach: float
    """Distance at which it has lost half of its intensity; infinite for a sun."""
    shadows: bool


@dataclass(frozen=True, eq=False)
class Sensor:
    """What the two cameras do to the light they receive."""

    target: float
    """Median of the exposed picture, linear in [0, 1]."""
    headroom: float
    """Upper limit of the brightest parts after exposure; what is above 1 is burnt out."""
    gamma: tuple[float, float]
    """Exponents of the left and right camera's encoding, near 2.2."""
    balance: Array
    """(2, 3) gains of the colour channels of the left and right camera."""
    blur: tuple[float, float]
    """Standard deviation of the blur of each camera in pixels; 0 is none."""
    focus: float
    """Share of the pixels that lie behind the distance in focus."""
    aperture: float
    """Standard deviation of the blur a pixel of disparity from that in focus; 0 is sharp."""
    shake: tuple[float, float]
    """How far, in pixels (x, y), the picture moves during the exposure; the same for both."""
    read_noise: float
    """Standard deviation of the noise in the dark, of a full scale of 1."""
    shot_noise: float
    """Variance of the noise a unit of light."""
    seed: int
    """Start the generator of the noise."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that decides a rendered pair."""

    kind: str
    """One of the kinds of `draw.KINDS`."""
    rig: Rig
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: Array
    """(3,) linear light that comes from everywhere."""
    haze: Array
    """(4,): colour of the haze and its density a unit of length; density 0 is clear air."""
    sensor: Sensor
