"""Renders both views of a scene, each from its own rays, with exact disparity and occlusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.cast import (
    Rays,
    nearest,
    nearest_on_grid,
    neighbours_first,
    occluded,
    one_thread,
    pixel_rays,
)
from ea_psmnet.datasets.synthetic.scene import Scene
from ea_psmnet.datasets.synthetic.sensor import encoded, exposure, sensed
from ea_psmnet.datasets.synthetic.shading import DISPLAY_GAMMA, Surface, lit, surface
from ea_psmnet.datasets.synthetic.textures import Atlas
from ea_psmnet.sample import StereoSample

_T = TypeVar("_T", bound=np.generic)
_FOLD = 0.005
"""Largest bend of 1 / depth between neighbouring pixels of a surface, as a share of it."""


@dataclass(frozen=True, eq=False)
class RenderedScene:
    """A rendered pair with dense ground truth."""

    left: NDArray[np.uint8]
    """(H, W, 3) RGB image."""
    right: NDArray[np.uint8]
    """(H, W, 3) RGB image."""
    disparity_left: NDArray[np.float32]
    """(H, W) in pixels: left (x, y) matches right (x - disparity, y)."""
    disparity_right: NDArray[np.float32]
    """(H, W) in pixels: right (x, y) matches left (x + disparity, y)."""
    occluded_left: NDArray[np.bool_]
    """(H, W), true where the right view does not show the point, or it is outside that image."""
    occluded_right: NDArray[np.bool_]
    """(H, W), the same for the right view."""
    object_left: NDArray[np.int32]
    """(H, W) index of the solid in the scene; -1 for none."""
    object_right: NDArray[np.int32]
    """(H, W), the same for the right view."""

    def sample(self, name: str) -> StereoSample:
        """Return the sample of the left view; pixels without a solid are invalid."""
        valid = self.object_left >= 0
        masks = {"nonocc": valid & ~self.occluded_left}
        return StereoSample(self.left, self.right, self.disparity_left, valid, name, masks)

    def mirrored(self) -> RenderedScene:
        """Return the mirrored scene: views flipped and swapped."""
        return RenderedScene(
            _flipped(self.right),
            _flipped(self.left),
            _flipped(self.disparity_right),
            _flipped(self.disparity_left),
            _flipped(self.occluded_right),
            _flipped(self.occluded_left),
            _flipped(self.object_right),
            _flipped(self.object_left),
        )


def _flipped(array: NDArray[_T]) -> NDArray[_T]:
    return np.ascontiguousarray(array[:, ::-1])


@dataclass(frozen=True, eq=False)
class Look:
    """Options of the appearance; the geometry never depends on them."""

    lighting: bool = True
    """Whether to render light; otherwise surfaces have their own colours."""
    noise: bool = True
    """Whether to simulate the sensor: noise, blur, colour balance and gamma."""
    supersample: int = 2
    """Rays per side of a pixel at the edges of objects, faces and shadows; 1 is off."""


@dataclass(frozen=True, eq=False)
class _View:
    """The image of a camera before the sensor."""

    linear: NDArray[np.float32]  # (H, W, 3)
    disparity: NDArray[np.float32]
    occluded: NDArray[np.bool_]
    number: NDArray[np.int32]


def render(
    scene: Scene, atlas: Atlas, look: Look | None = None, device: torch.device | str = "cpu"
) -> RenderedScene:
    """Render both views of a scene by casting rays on a device, which also holds the textures."""
    look = look or Look()
    with torch.inference_mode(), one_thread():
        bodies = [Body(solid, device) for solid in scene.solids]
        eyes = 0.0, scene.rig.baseline
        left = _view(scene, bodies, atlas, look, eyes)
        right = _view(scene, bodies, atlas, look, eyes[::-1])
    gain = exposure(scene.sensor, left.linear) if look.lighting else 1.0
    pictures = left.linear * gain, right.linear * gain
    if look.noise:
        encoded_pair = sensed(scene.sensor, *pictures, (left.disparity, right.disparity))
    else:
        encoded_pair = encoded(pictures[0]), encoded(pictures[1])
    return RenderedScene(
        *encoded_pair,
        left.disparity,
        right.disparity,
        left.occluded,
        right.occluded,
        left.number,
        right.number,
    )


def _view(
    scene: Scene, bodies: Sequence[Body], atlas: Atlas, look: Look, eyes: tuple[float, float]
) -> _View:
    """Render the view of the camera at the first of `eyes`, with occlusion for the second."""
    rig = scene.rig
    rays = pixel_rays(rig, eyes[0], bodies[0].centre.device)
    depth, number = nearest_on_grid(bodies, rays)
    order = neighbours_first(rays, number)
    hit, met = rays.part(order), depth.index_select(0, order)
    seen = surface(bodies, hit, met, number.index_select(0, order), atlas)
    colours, key = _colours(scene, bodies, hit, seen, atlas, look)
    linear = colours.new_zeros(3, len(depth)).index_copy_(1, order, colours)
    if look.supersample > 1:
        keys = torch.full_like(number, -1).index_copy_(0, order, key).view(rig.size)
        edges = _edges(keys) | _folds(depth.view(rig.size))
        _supersample(scene, bodies, atlas, look, rays, edges.flatten().nonzero()[:, 0], linear)
    unseen = occluded(bodies, hit, met, seen.number, seen.away(eyes[1]), eyes[1])
    hidden = torch.ones_like(number, dtype=torch.bool).index_copy_(0, order, unseen)
    disparity = rig.focal * rig.baseline / depth
    return _View(
        linear.view(3, *rig.size).permute(1, 2, 0).contiguous().cpu().numpy(),
        disparity.float().view(rig.size).cpu().numpy(),
        hidden.view(rig.size).cpu().numpy(),
        number.int().view(rig.size).cpu().numpy(),
    )


def _colours(
    scene: Scene, bodies: Sequence[Body], rays: Rays, seen: Surface, atlas: Atlas, look: Look
) -> tuple[Tensor, Tensor]:
    """Return (3, N) linear colours, and (N,) keys that differ across visible edges."""
    key = 4 * seen.number + seen.face
    if not look.lighting:
        return seen.albedo**DISPLAY_GAMMA, key
    colours, reached = lit(scene, bodies, rays, seen, atlas)
    return colours, (key << len(scene.lights)) + reached


def _edges(keys: Tensor) -> Tensor:
    """Return (H, W) where the key differs from that of one of the four neighbours."""
    edge = torch.zeros_like(keys, dtype=torch.bool)
    across = keys[:, 1:] != keys[:, :-1]
    down = keys[1:] != keys[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _folds(depth: Tensor) -> Tensor:
    """Return (H, W) where a surface occludes another part of itself.

    1 / depth is linear along rows and columns of a plane. A sharp bend is an edge, even if both
    sides belong to the same face of a body.
    """
    near = depth.reciprocal()
    bend = torch.zeros_like(near)
    bend[:, 1:-1] = (near[:, 2:] + near[:, :-2] - 2 * near[:, 1:-1]).abs()
    bend[1:-1] = torch.maximum(bend[1:-1], (near[2:] + near[:-2] - 2 * near[1:-1]).abs())
    return bend > _FOLD * near


def _supersample(
    scene: Scene,
    bodies: Sequence[Body],
    atlas: Atlas,
    look: Look,
    rays: Rays,
    edges: Tensor,
    linear: Tensor,
) -> None:
    """Replace the colours of edge pixels in `linear` (3, H*W) by means over several rays."""
    if not len(edges):
        return
    # Sorted by tile, so that blocks of rays are compact.
    around = rays.part(edges)
    around = around.part(neighbours_first(around, torch.zeros_like(edges)))
    side = look.supersample
    steps = (torch.arange(side, dtype=torch.float32, device=edges.device) + 0.5) / side - 0.5
    dx, dy = steps.repeat(side), steps.repeat_interleave(side)
    x, y = (around.x[:, None] + dx).flatten(), (around.y[:, None] + dy).flatten()  # (E * side²,)
    every = Rays(rays.rig, rays.eye, x, y)
    depth, number = nearest(bodies, every)
    order = neighbours_first(every, number)
    hit = every.part(order)
    seen = surface(bodies, hit, depth.index_select(0, order), number.index_select(0, order), atlas)
    colours, _ = _colours(scene, bodies, hit, seen, atlas, look)
    parts = colours.new_zeros(3, len(x)).index_copy_(1, order, colours)
    index = (around.y * rays.rig.size[1] + around.x).long()
    linear.index_copy_(1, index, parts.view(3, -1, side * side).mean(2))
