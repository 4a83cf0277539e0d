"""Casting with bounds and blocks finds what trying every ray with every body finds."""

import pytest
import torch

from ea_psmnet.datasets.synthetic import KINDS, SyntheticScenes
from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.cast import (
    BLOCK,
    Rays,
    blocks,
    members,
    nearest,
    nearest_on_grid,
    neighbours_first,
    occluded,
    pixel_rays,
    shaded,
)
from ea_psmnet.datasets.synthetic.draw import draw_scene
from ea_psmnet.datasets.synthetic.shading import surface
from ea_psmnet.datasets.synthetic.textures import Atlas

SIZE = (48, 88)


def bodies_of(kind: str, number: int = 4):
    scene = draw_scene(9, number, SIZE, 192, kind)
    return scene, [Body(solid, "cpu") for solid in scene.solids]


def tried_one_by_one(bodies: list[Body], rays: Rays) -> tuple[torch.Tensor, torch.Tensor]:
    depths = torch.stack([body.seen(rays.eye, rays.directions) for body in bodies])
    depth, number = depths.min(0)
    return depth, torch.where(depth.isinf(), -1, number)


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_body_is_found(kind: str) -> None:
    scene, bodies = bodies_of(kind)
    for eye in (0.0, scene.rig.baseline):
        rays = pixel_rays(scene.rig, eye, "cpu")
        expected = tried_one_by_one(bodies, rays)
        for found in (nearest(bodies, rays), nearest_on_grid(bodies, rays)):
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
            assert (found[1] == expected[1]).float().mean() > 0.999  # two bodies may touch


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_and_shaded_points_are_found(kind: str) -> None:
    scene, bodies = bodies_of(kind)
    rays = pixel_rays(scene.rig, 0.0, "cpu")
    depth, number = nearest_on_grid(bodies, rays)
    order = neighbours_first(rays, number)
    rays, depth, number = rays.part(order), depth[order], number[order]
    seen = surface(bodies, rays, depth, number, Atlas([torch.zeros(512, 512, 3).numpy()], "cpu"))
    eye = scene.rig.baseline
    points = seen.points
    other = torch.tensor([[eye], [0.0], [0.0]])
    hidden = occluded(bodies, rays, depth, number, seen.away(eye), eye)
    column = rays.x - scene.rig.focal * eye / depth
    convex = torch.tensor([body.solid.mesh is None for body in bodies])[number]
    outside = (column < -0.5) | (column > SIZE[1] - 0.5) | (seen.away(eye) < 0) & convex
    expected = outside | between(bodies, points, number, other)
    near = depth < 1e4  # from the sky to the eye, float32 points miss what is on their way
    assert (hidden == expected)[near].float().mean() > 0.999  # ties in the last digit
    assert 0.01 < hidden.float().mean() < 0.9
    light = torch.tensor([[-3.0], [-4.0], [-1.0]])
    dark = shaded(bodies, points, number, torch.ones_like(hidden), light)
    casters = [k for k, body in enumerate(bodies) if body.solid.casts_shadow]
    expected = between(bodies, points, number, light, casters)
    assert (dark == expected)[near].float().mean() > 0.999
    assert 0.005 < dark.float().mean() < 0.99


def between(bodies, points, number, goal, chosen=None) -> torch.Tensor:
    """Whether some body stands between each point and the goal."""
    hits = torch.zeros_like(number, dtype=torch.bool)
    for k in range(len(bodies)) if chosen is None else chosen:
        body = bodies[k]
        hits |= body.shades(points, goal) & ((number != k) | (body.solid.mesh is not None))
    return hits


def test_points_of_a_body_are_neighbours() -> None:
    scene, bodies = bodies_of("flying")
    rays = pixel_rays(scene.rig, 0.0, "cpu")
    _, number = nearest_on_grid(bodies, rays)
    number[::7] = -1
    order = neighbours_first(rays, number)
    assert (number[order] >= 0).all()
    assert (number[order].diff() >= 0).all()
    assert len(order) == (number >= 0).sum()
    assert len(order.unique()) == len(order)
    reach = blocks(rays.part(order).x)[1:-1].aminmax(dim=1)
    assert (reach.max - reach.min).median() < 30  # of 88 columns


def test_only_points_that_matter_are_tried() -> None:
    scene, bodies = bodies_of("flying")
    rays = pixel_rays(scene.rig, 0.0, "cpu")
    depth, number = nearest_on_grid(bodies, rays)
    points, light = depth * rays.directions, torch.tensor([[-3.0], [-4.0], [-1.0]])
    every, none = (torch.full_like(number, v, dtype=torch.bool) for v in (True, False))
    dark = shaded(bodies, points, number, every, light)
    assert dark.any()
    assert not shaded(bodies, points, number, none, light).any()
    some = every.clone()
    some[: len(some) // 2] = False
    torch.testing.assert_close(shaded(bodies, points, number, some, light)[some], dark[some])


def test_blocks_hold_every_number_once_but_the_last() -> None:
    numbers = torch.arange(3 * BLOCK + 5)
    whole = blocks(numbers)
    assert whole.shape == (4, BLOCK)
    torch.testing.assert_close(whole.flatten()[: len(numbers)], numbers)
    assert (whole.flatten()[len(numbers) :] == numbers[-1]).all()
    chosen = torch.tensor([[True, False, True, True], [False] * 4])
    assert [found.tolist() for found in members(chosen)] == [[0, 2, 3], []]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_renders_the_same(kind: str) -> None:
    on_cpu, on_gpu = (
        SyntheticScenes(seed=5, size=SIZE, noise=False, device=device, kind=kind).render(2)
        for device in ("cpu", "cuda")
    )
    same = on_cpu.object_left == on_gpu.object_left
    assert same.mean() > 0.999
    difference = abs(on_cpu.disparity_left - on_gpu.disparity_left)[same]
    assert difference.max() < 0.01
    assert abs(on_cpu.left.astype(float) - on_gpu.left).mean() < 0.5
