"""Random materials, shapes and lights, and their placement, for all kinds of scenes."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from ea_psmnet.datasets.synthetic.outlines import draw_outline
from ea_psmnet.datasets.synthetic.scene import Array, Light, Material, Outline, Solid
from ea_psmnet.datasets.synthetic.sculpture import draw_sculpture

NO_CUTS: Array = np.zeros((0, 4))
FACING: Array = np.eye(3)
"""Rotation of a card that faces the camera, or an upright box."""
_VALUES = ((0.02, 0.12), (0.12, 0.92), (0.88, 1.0))
"""Ranges of brightness of dark, common and white surfaces."""
_SHAPES = {
    "box": 0.18,
    "cut box": 0.13,
    "ellipsoid": 0.1,
    "cut ellipsoid": 0.08,
    "cylinder": 0.08,
    "cut cylinder": 0.05,
    "card": 0.26,
    "mesh": 0.12,
}
"""Probabilities of the shapes of single solids."""
UPRIGHT: Array = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""Rotation of an upright cylinder, or a horizontal card."""
SIDEWAYS: Array = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
"""Rotation of a card that is a wall on the left or right."""


def turn_y(angle: float) -> Array:
    """Return the rotation about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def turn_x(angle: float) -> Array:
    """Return the rotation about the horizontal axis; a positive angle turns down to front."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def turn_z(angle: float) -> Array:
    """Return the rotation about the viewing direction."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def moved(solid: Solid, rotation: Array, shift: Array) -> Solid:
    """Rotate a solid about the origin, then shift it."""
    centre = rotation @ solid.centre + shift
    return replace(solid, centre=centre, rotation=rotation @ solid.rotation)


def lit_from(light: Light, rotation: Array) -> Light:
    """Rotate a light about the origin."""
    return replace(light, position=rotation @ light.position)


@dataclass(frozen=True, eq=False)
class Palette:
    """A random generator for the materials, shapes and lights of a scene seen by a camera."""

    rng: np.random.Generator
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    focal: float
    """Focal length in pixels."""
    vivid: float
    """Saturation of the scene's colours; 1 is that of painted objects."""

    def chance(self, share: float) -> bool:
        """Draw true with this probability."""
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        """Draw uniformly."""
        return float(self.rng.uniform(low, high))

    def spread(self, low: float, high: float) -> float:
        """Draw log-uniformly."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def count(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def extent(self, share: float, depth: float) -> float:
        """Return the length that covers this share of the image width at this depth."""
        return share * self.size[1] * depth / self.focal

    def rotation(self) -> Array:
        """Draw a uniform rotation, from a random quaternion."""
        w, x, y, z = (q := self.rng.standard_normal(4)) / np.sqrt(q @ q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )

    def colour(self) -> Array:
        """Draw a colour (3,) in [0, 1]; most are muted, as in reality."""
        saturation = min(1.0, self.vivid * self.rng.beta(1.1, 2.2))
        low, high = _VALUES[self.rng.choice(len(_VALUES), p=(0.1, 0.78, 0.12))]
        value = self.between(low, high)
        return np.array(colorsys.hsv_to_rgb(self.between(0, 1), saturation, value))

    def material(self, depth: float, *, weak: float = 0.15, base: Array | None = None) -> Material:
        """Draw the material of a surface seen at about `depth`, which decides the texture's scale.

        `weak` is the probability of a nearly uniform surface, `base` the mean colour.
        """
        base = self.colour() if base is None else base
        is_weak = self.chance(weak)
        contrast = self.spread(0.004, 0.12) if is_weak else self.between(0.35, 1.15)
        saturation = self.between(0, min(1.2, 0.3 + self.vivid))
        mixing = saturation * np.eye(3) + (1 - saturation) / 3
        mixing = mixing[:, self.rng.permutation(3)] if self.chance(0.5) else mixing
        tint = 1 + self.between(0, 0.7) * (base / base.mean() - 1)
        matrix = contrast * tint[:, None] * mixing
        finish = str(self.rng.choice(["matt", "glossy", "mirror"], p=(0.6, 0.25, 0.15)))
        return Material(
            texture=int(self.rng.integers(1 << 16)),
            density=self.spread(0.25, 2.5) * self.focal / depth,
            turn=self.between(0, 2 * np.pi) if self.chance(0.4) else 0.0,
            shift=(self.between(0, 512), self.between(0, 512)),
            colours=np.hstack([matrix, (base - matrix.sum(1) / 2)[:, None]]),
            detail=int(self.rng.integers(1 << 16)),
            detail_density=self.spread(0.5, 2.0) * self.focal / depth,
            detail_strength=self.between(0, 0.08) if is_weak else self.between(0, 0.6),
            highlight=0.0 if finish == "matt" else self.spread(0.03, 0.8),
            shininess=self.spread(4, 200),
            mirror=self.spread(0.02, 0.5) if finish == "mirror" else 0.0,
            surroundings=int(self.rng.integers(1 << 16)),
        )

    def paint(self, depth: float) -> Material:
        """Draw a material of one colour without texture."""
        plain = np.hstack([np.zeros((3, 3)), self.colour()[:, None]])
        material = self.material(depth, weak=1.0)
        return replace(material, colours=plain, detail_strength=0.0, mirror=0.0)

    def glass(self, depth: float) -> Material:
        """Draw the material of a dark window, which mostly mirrors."""
        dark = np.full(3, self.between(0.02, 0.25)) * self.rng.uniform(0.9, 1.1, 3)
        mirror = self.spread(0.04, 0.6)
        return replace(self.material(depth, weak=0.9, base=dark), mirror=mirror, highlight=0.5)

    def sky(self, radius: float) -> Material:
        """Draw the material of the sky, a sphere of this radius: clear, cloudy or grey."""
        blue = np.array(colorsys.hsv_to_rgb(self.between(0.5, 0.65), self.between(0, 0.6), 0.9))
        material = self.material(1.0, weak=0.5, base=blue * self.between(0.6, 1.1))
        density = self.spread(225, 1500) / radius  # texels per radian
        return replace(material, density=density, glows=True, detail_strength=0.0, mirror=0.0)

    def outline(self) -> Outline | None:
        """Draw the silhouette of a card; a third of them are plain rectangles."""
        kinds = ("rectangle", "disc", "blob", "foliage", "lattice", "stencil")
        kind = str(self.rng.choice(kinds, p=(0.35, 0.07, 0.11, 0.04, 0.06, 0.37)))
        return None if kind == "rectangle" else draw_outline(self.rng, kind)

    def cuts(self) -> Array:
        """Draw (N, 4) cutting planes that keep the centre of the unit shape; many give a stone."""
        return self.facets(self.count(1, 7) if self.chance(0.7) else self.count(9, 16))

    def facets(self, count: int) -> Array:
        """Draw (count, 4) cutting planes that keep the centre of the unit shape."""
        normals = self.rng.standard_normal((count, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return np.hstack([normals, self.rng.uniform(0.2, 0.9, (count, 1))])

    def solid(self, centre: Array, rotation: Array, half: Array, material: Material) -> Solid:
        """Draw a random shape of any kind."""
        name = str(self.rng.choice(list(_SHAPES), p=list(_SHAPES.values())))
        cuts = self.cuts() if name.startswith("cut") else NO_CUTS
        shape = name.split()[-1]
        outline = self.outline() if shape == "card" else None
        mesh = draw_sculpture(self.rng) if shape == "mesh" else None
        return Solid(shape, centre, rotation, half, material, cuts, outline, mesh=mesh)

    def rod(self, centre: Array, rotation: Array, length: float, material: Material) -> Solid:
        """Draw a thin bar along its z axis, round or square."""
        thickness = length * self.spread(0.008, 0.05)
        shape = "cylinder" if self.chance(0.5) else "box"
        half = np.array([thickness, thickness * self.between(0.4, 1), length]) / 2
        return Solid(shape, centre, rotation, half, material, NO_CUTS)

    def lamp(self, position: Array, reach: float, shadows: bool) -> Light:
        """Draw a light of warm, neutral or cool colour."""
        warmth = self.between(-0.25, 0.25)
        colour = np.array([1 + warmth, 1.0, 1 - warmth]) * self.spread(0.4, 2.0)
        return Light(position, colour, reach, shadows)

    def sun(self, shadows: bool) -> Light:
        """Draw a light from far above or behind the camera."""
        direction = np.array([self.between(-1, 1), -self.spread(0.3, 2), self.between(-1.2, 0.4)])
        return self.lamp(direction * 1e4, np.inf, shadows)


def card(
    centre: Array, rotation: Array, half: Array | tuple[float, float], material: Material
) -> Solid:
    """Return a rectangle."""
    return Solid("card", centre, rotation, np.array([*half, 0.0]), material, NO_CUTS)


def box(centre: Array, half: Array, material: Material) -> Solid:
    """Return an upright box."""
    return Solid("box", centre, FACING, half, material, NO_CUTS)


def column(centre: Array, radius: float, height: float, material: Material) -> Solid:
    """Return an upright cylinder."""
    half = np.array([radius, radius, height / 2])
    return Solid("cylinder", centre, UPRIGHT, half, material, NO_CUTS)


def backdrop(solid: Solid) -> Solid:
    """Return the solid without a shadow, so that walls do not block the light behind them."""
    return replace(solid, casts_shadow=False)


CLEAR: Array = np.zeros(4)
"""No haze."""
ENDLESS = 60
"""Half extent of a backdrop as a multiple of its distance, so that no camera sees its edge."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Solids and lights of a scene in the coordinates of the left camera."""

    solids: list[Solid]
    lights: list[Light]
    ambient: Array
    haze: Array


def seen_from(solids: list[Solid], structure: list[Solid], pose: Array, near: float) -> list[Solid]:
    """Rotate structure and solids to camera coordinates; drop solids closer than `near`."""
    turned = [moved(solid, pose, np.zeros(3)) for solid in solids]
    kept = [solid for solid in turned if solid.centre[2] - solid.depth_reach > near]
    return [moved(solid, pose, np.zeros(3)) for solid in structure] + kept


def looking_at(palette: Palette, target: Array) -> Array:
    """Draw a rotation from level to camera coordinates, with `target` near the image centre.

    It includes a small roll, as in a hand-held photograph.
    """
    x, y, z = target
    aside, down = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    # Standard deviations: 8 % of the width from the centre, 1.5 degrees of roll.
    jitter = palette.rng.normal(0, 0.08, 2) * palette.size[1] / palette.focal
    roll = np.radians(palette.rng.normal(0, 1.5))
    return turn_z(roll) @ turn_x(down + jitter[0]) @ turn_y(jitter[1] - aside)


def slanted(palette: Palette, aside: float, down: float, most: float = np.pi) -> Array:
    """Draw a random lean, given standard deviations and the largest angle in radians.

    The limit is for backdrops, whose edge must stay out of view.
    """
    angles = palette.rng.normal(0, (aside, down)).clip(-most, most)
    return turn_y(angles[0]) @ turn_x(angles[1])


def draw_lights(palette: Palette, distance: float, shadows: bool) -> list[Light]:
    """Draw one or two lights in front of and above the scene."""
    lights = []
    for _ in range(palette.count(1, 2)):
        if palette.chance(0.5):
            lights.append(palette.sun(shadows))
        else:
            # Any x, mostly above (y points down), from behind the camera to the far end.
            position = distance * palette.rng.uniform((-1, -1, -0.3), (1, 0.3, 0.8))
            lights.append(palette.lamp(position, distance * palette.spread(0.4, 3), shadows))
    return lights


def draw_ambient(palette: Palette) -> Array:
    """Draw ambient light, slightly coloured; lamps have 0.4 to 2."""
    return palette.spread(0.15, 1.2) * (1 + palette.rng.uniform(-0.15, 0.15, 3))


def draw_haze(palette: Palette, distance: float, share: float) -> Array:
    """Draw grey haze with probability `share`.

    It absorbs a tenth to two thirds of the light from `distance`.
    """
    grey = palette.rng.uniform(0.5, 0.9, 1).repeat(3)
    hazy = np.array([*grey, palette.spread(0.1, 1.0) / distance])
    return hazy if palette.chance(share) else CLEAR


def spot(palette: Palette, depth: float) -> Array:
    """Draw a point at this depth in the image or just outside."""
    height, width = palette.size
    x, y = palette.rng.uniform(-0.55, 0.55, 2) * (width, height) / palette.focal
    return np.array([x, y, 1.0]) * depth


def floating(palette: Palette, near: float, far: float) -> Solid:
    """Draw a random object of any pose between the two depths."""
    # Uniform in disparity or log depth, so that both near and far objects are common.
    by_disparity = palette.chance(0.5)
    depth = 1 / palette.between(1 / far, 1 / near) if by_disparity else palette.spread(near, far)
    upright = palette.chance(0.25)
    rotation = turn_z(palette.between(0, np.pi)) if upright else palette.rotation()
    material = palette.material(depth)
    # Sizes are shares of the image width at any depth.
    if palette.chance(0.22):
        length = palette.extent(palette.spread(0.15, 0.9), depth)
        solid = palette.rod(np.zeros(3), palette.rotation(), length, material)
    else:
        size = palette.extent(palette.spread(0.05, 0.5), depth)
        half = size * palette.rng.uniform(0.3, 1, 3) / 2
        solid = palette.solid(np.zeros(3), rotation, half, material)
    # Moved back until all of it is behind `near`.
    depth = max(depth, near + solid.depth_reach)
    return replace(solid, centre=spot(palette, depth))
