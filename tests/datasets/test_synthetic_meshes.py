"""Meshes: the form of the sculptures, exact depth, folds that hide and shade one another."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_synthetic import RIG, SIZE, atlas, flat_areas, material, pixel_slopes, wall, warp_errors

from ea_psmnet.datasets.synthetic import Look, RenderedScene, render
from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.draw import draw_scene
from ea_psmnet.datasets.synthetic.palette import FACING, NO_CUTS, turn_x, turn_y
from ea_psmnet.datasets.synthetic.scene import Mesh, Solid
from ea_psmnet.datasets.synthetic.sculpture import _FORMS, draw_sculpture

ETA = 0.35
"""Radius of the torus's tube, of a ring of 1."""


def sculptures(count: int = 12) -> list[Mesh]:
    return [draw_sculpture(np.random.default_rng(seed)) for seed in range(count)]


def torus(rings: int = 160, spokes: int = 96) -> Mesh:
    """A fine torus around z, within [-1, 1] in all three."""
    around, along = np.meshgrid(
        np.arange(spokes) * 2 * np.pi / spokes, np.arange(rings) * 2 * np.pi / rings
    )
    outward = np.stack(
        [np.cos(along) * np.cos(around), np.sin(along) * np.cos(around), np.sin(around)], -1
    )
    spine = np.stack([np.cos(along), np.sin(along), 0 * along], -1)
    vertices = (spine + ETA * outward).reshape(-1, 3)
    number = np.arange(rings * spokes).reshape(rings, spokes)
    right, down = np.roll(number, -1, 1), np.roll(number, -1, 0)
    both = np.roll(down, -1, 1)
    faces = np.concatenate(
        [np.stack([number, down, both], -1), np.stack([number, both, right], -1)]
    )
    scale = np.array([1 + ETA, 1 + ETA, ETA])
    return Mesh(vertices / scale, faces.reshape(-1, 3), outward.reshape(-1, 3) * scale)


def body(mesh: Mesh, centre=(0.0, 0.0, 2.5), rotation=FACING, half=(0.5, 0.5, 0.5)) -> Solid:
    return Solid("mesh", np.array(centre), rotation, np.array(half), material(), NO_CUTS, mesh=mesh)


def rendered(*solids: Solid, look: Look | None = None, shadows: bool = False) -> RenderedScene:
    scene = replace(draw_scene(0, 1, SIZE, 64, "flying"), rig=RIG, solids=solids)
    position = np.array([-4.0, -0.1, 2.5])
    light = replace(scene.lights[0], position=position, reach=np.inf, shadows=shadows)
    scene = replace(scene, lights=(light,), ambient=np.full(3, 0.1), haze=np.zeros(4))
    return render(scene, atlas(), look or Look(lighting=False, noise=False, supersample=1))


@pytest.mark.parametrize("form", _FORMS)
def test_a_form_is_a_closed_skin_that_fills_its_box(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ea_psmnet.datasets.synthetic.sculpture._SHARES", dict.fromkeys(_FORMS, 0.0) | {form: 1}
    )
    for mesh in sculptures():
        assert np.isfinite(mesh.normals).all()
        np.testing.assert_allclose(mesh.vertices.min(0), -1)
        np.testing.assert_allclose(mesh.vertices.max(0), 1)
        _, point = np.unique(mesh.vertices.round(9), axis=0, return_inverse=True)
        ways = point.flatten()[mesh.faces[:, [[0, 1], [1, 2], [2, 0]]]].reshape(-1, 2)
        ways = ways[ways[:, 0] != ways[:, 1]]  # the ring at an end is one point
        back = {(b, a) for a, b in ways.tolist()}
        assert back == {(a, b) for a, b in ways.tolist()}  # each edge is walked in both ways
        a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
        assert (np.cross(b - a, c - a) * a).sum() > 0.2  # outside is outside


def test_no_two_are_alike() -> None:
    shapes = {(len(mesh.faces), float(mesh.vertices.std())) for mesh in sculptures(30)}
    assert len(shapes) == 30


def first_by_brute_force(solid: Solid, eye: float, directions: np.ndarray) -> np.ndarray:
    """Every ray with every triangle, in float64 (Moeller and Trumbore, 1997)."""
    corners = solid.centre + (solid.mesh.vertices * solid.half) @ solid.rotation.T
    best = np.full(directions.shape[1], np.inf)
    for a, b, c in corners[solid.mesh.faces]:
        one, two, start = b - a, c - a, np.array([eye, 0, 0]) - a
        across = np.cross(directions.T, two)
        determinant = across @ one
        with np.errstate(divide="ignore", invalid="ignore"):
            u = across @ start / determinant
            v = directions.T @ np.cross(start, one) / determinant
            t = two @ np.cross(start, one) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (determinant > 0)
        best = np.where(hit, np.minimum(best, t), best)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_rays_meet_the_triangle_that_trying_all_finds(seed: int) -> None:
    mesh = draw_sculpture(np.random.default_rng(seed))
    solid = body(mesh, (0.2, -0.1, 2.0), turn_y(seed) @ turn_x(0.7 * seed), (0.5, 0.3, 0.4))
    slopes = np.random.default_rng(seed).uniform(-0.5, 0.5, (2, 4000))
    directions = np.concatenate([slopes, np.ones((1, 4000))]).astype(np.float32)
    expected = first_by_brute_force(solid, 0.3, directions.astype(np.float64))
    found = Body(solid, "cpu").seen(0.3, torch.from_numpy(directions)).numpy()
    assert 200 < np.isfinite(expected).sum() < 3700
    assert (np.isinf(found) != np.isinf(expected)).sum() <= 2  # the last digit decides at the rim
    both = np.isfinite(found) & np.isfinite(expected)
    np.testing.assert_allclose(found[both], expected[both], rtol=1e-5)


def test_torus_has_the_disparity_of_the_formula() -> None:
    """The points that are seen lie on the torus, and nothing of it is missing."""
    rotation = turn_y(0.5) @ turn_x(0.9)
    half = np.array([1 + ETA, 1 + ETA, ETA]) * 0.5
    solid = body(torus(), rotation=rotation, half=half)
    scene = rendered(wall(6.0), solid)
    on_it = scene.object_left == 1
    x, y = pixel_slopes()
    depth = RIG.focal * RIG.baseline / scene.disparity_left.astype(float)
    points = (np.stack([x * depth, y * depth, depth], -1) - solid.centre) @ rotation / 0.5
    from_spine = np.hypot(np.hypot(points[..., 0], points[..., 1]) - 1, points[..., 2])
    assert on_it.sum() > 1500
    np.testing.assert_allclose(from_spine[on_it], ETA, atol=1.5e-3)
    # No point of the rays that miss it, from before it to behind it, is inside.
    for z in np.linspace(1.6, 3.4, 60):
        beside = (np.stack([x * z, y * z, z + 0 * x], -1) - solid.centre) @ rotation / 0.5
        inside = np.hypot(np.hypot(beside[..., 0], beside[..., 1]) - 1, beside[..., 2]) < ETA - 2e-3
        assert not inside[~on_it].any()
        behind = z < depth - 1e-3
        assert not (inside & on_it & behind).any()  # and none before the point that is seen
    hole = scene.object_left[int(RIG.centre[1]), int(RIG.centre[0])]
    assert hole == 0


def test_pairs_of_sculptures_agree() -> None:
    """As for the kinds of scenes: colours, objects, and what hides what, folds included."""
    right, wrong, folded = [], [], 0
    for seed, mesh in enumerate(sculptures(8)):
        pose = turn_y(seed) @ turn_x(2 * seed)
        scene = rendered(wall(6.0), body(mesh, rotation=pose, half=(0.6, 0.5, 0.7)))
        right.append(warp_errors(scene, scene.disparity_left))
        wrong.append(warp_errors(scene, scene.disparity_left + 1))
        column = np.indices(SIZE)[1] - scene.disparity_left
        near = cv2.remap(
            scene.disparity_right, column.astype(np.float32),
            np.indices(SIZE)[0].astype(np.float32), cv2.INTER_NEAREST,
        )  # fmt: skip
        whole = flat_areas(scene.object_left)
        on_it = whole & (scene.object_left == 1) & (column >= 0)
        hidden = on_it & scene.occluded_left
        # What a fold hides is behind what the right eye sees there; what is seen is there itself.
        gap = near - scene.disparity_left
        assert (gap[hidden] < -0.5).sum() <= 0.02 * hidden.sum()
        assert (gap[on_it & ~hidden] > 1).mean() < 0.03
        folded += (hidden & (gap > 1)).sum()
    assert folded > 50
    errors = np.concatenate(right)
    assert np.median(errors) < 1.5
    assert np.percentile(errors, 95) < 12
    assert np.concatenate(wrong).mean() > 2 * errors.mean()


def test_a_ring_shades_its_own_far_side() -> None:
    solid = body(torus(), (0.0, 0.25, 2.5), turn_x(1.2), np.array([1 + ETA, 1 + ETA, ETA]) * 0.4)
    white = replace(material(), colours=np.eye(3, 4) * 0 + [[0, 0, 0, 0.5]], detail_strength=0.0,
                    highlight=0.0, mirror=0.0)  # fmt: skip
    solids = (wall(6.0), replace(solid, material=white))
    look = Look(noise=False, supersample=1)
    dark, bright = (rendered(*solids, look=look, shadows=on) for on in (True, False))
    on_it = bright.object_left == 1
    shaded = (dark.left.astype(int) < bright.left.astype(int) - 25).all(2)[on_it]
    assert 0.02 < shaded.mean() < 0.6


def test_a_lamp_among_the_folds_is_not_in_the_way() -> None:
    ready = Body(body(torus()), "cpu")
    points, lamp = torch.tensor([[0.0], [0.0], [5.0]]), torch.tensor([[0.1], [0.0], [2.5]])
    assert not ready.shades(points, lamp).any()


def test_a_mesh_behind_the_cameras_is_refused() -> None:
    ready = Body(body(torus(), (0.0, 0.0, 0.2)), "cpu")
    with pytest.raises(ValueError, match="reaches behind the cameras"):
        ready.seen(0.0, torch.tensor([[0.0], [0.0], [1.0]]))


def test_the_edge_of_a_fold_is_softened() -> None:
    """The near side of a level ring before its far side: one object, one face, and an edge."""
    solid = body(torus(), (0.0, 0.25, 2.5), turn_x(1.2), np.array([1 + ETA, 1 + ETA, ETA]) * 0.4)
    vivid = replace(material(2.5), colours=np.eye(3, 4), density=150.0)
    solids = (wall(6.0), replace(solid, material=vivid))
    sharp, soft = (
        rendered(*solids, look=Look(lighting=False, noise=False, supersample=k)) for k in (1, 2)
    )
    on_it = cv2.erode((sharp.object_left == 1).astype(np.uint8), np.ones((3, 3))) > 0
    jump = np.zeros(SIZE, bool)
    jump[1:] = on_it[1:] & on_it[:-1] & (np.abs(np.diff(sharp.disparity_left, axis=0)) > 1)
    assert jump.sum() > 20
    assert (sharp.left != soft.left).any(2)[jump].mean() > 0.9
