"""Silhouettes, mirrors and lenses of generated scenes: what the pictures show, and no more."""

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch

from ea_psmnet.datasets.synthetic import Look, render
from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.draw import draw_scene
from ea_psmnet.datasets.synthetic.outlines import (
    FAMILIES,
    SIDE,
    covers,
    draw_stencil,
    inside_stencil,
)
from ea_psmnet.datasets.synthetic.palette import FACING, Palette, card
from ea_psmnet.datasets.synthetic.scene import Rig, Scene, Sensor, Solid
from ea_psmnet.datasets.synthetic.sensor import exposure, sensed
from ea_psmnet.datasets.synthetic.textures import Atlas

SIZE = (64, 96)
RIG = Rig(SIZE, focal=90.0, centre=(47.5, 31.5), baseline=0.3)
STILL = Sensor(0.2, 1.0, (2.2, 2.2), np.ones((2, 3)), (0.0, 0.0), 0.0, 0.0, (0.0, 0.0), 0.0, 0.0, 0)


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """One picture: vertical stripes, so that what is mirrored depends on the direction."""
    stripes = np.zeros((512, 512, 3), np.float32)
    stripes[:, np.arange(512) // 16 % 2 == 0] = 1
    return Atlas([stripes], "cpu")


def material(**changes):
    plain = Palette(np.random.default_rng(0), SIZE, RIG.focal, 1.0).material(3.0, weak=0.0)
    grey = np.hstack([np.zeros((3, 3)), np.full((3, 1), 0.5)])
    changes = {"colours": grey, "detail_strength": 0.0, "highlight": 0.0, "mirror": 0.0} | changes
    return replace(plain, **changes)


def scene_of(*solids: Solid) -> Scene:
    return replace(draw_scene(0, 0, SIZE, 64, "flying"), rig=RIG, solids=solids, haze=np.zeros(4))


def wall(depth: float, half: float, **changes) -> Solid:
    return card(np.array([0, 0, depth]), FACING, (half, half), material(**changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_stencils_fill_their_square_but_for_the_rim(family: str) -> None:
    axis = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    x, y = axis.repeat(SIDE), axis.repeat_interleave(SIDE)
    seen = set()
    for number in FAMILIES[family]:
        inside = inside_stencil(number, x, y).view(SIDE, SIDE)
        assert 0.01 < inside.float().mean() < 0.9
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert not edge.any()
        rows, columns = (np.flatnonzero(inside.any(k).numpy()) for k in (1, 0))
        assert min(np.ptp(rows), np.ptp(columns)) > 0.85 * SIDE
        seen.add(inside.numpy().tobytes())
    assert len(seen) == len(FAMILIES[family])


def test_a_card_has_its_stencil_as_silhouette() -> None:
    outline = draw_stencil(np.random.default_rng(1), "letters")
    plate = replace(wall(2.0, 0.6), outline=outline)
    scene = render(scene_of(wall(6.0, 100), plate), atlas(), Look(noise=False, supersample=1))
    y, x = np.indices(SIZE).reshape(2, -1)
    across, down = ((p - c) / RIG.focal * 2 / 0.6 for p, c in zip((x, y), RIG.centre, strict=True))
    expected = covers(outline, torch.tensor(across).float(), torch.tensor(down).float())
    np.testing.assert_array_equal(scene.object_left.flatten() == 1, expected.numpy())
    assert 0.05 < expected.float().mean() < 0.9
    # Nowhere between: each pixel has the one depth or the other.
    np.testing.assert_allclose(scene.disparity_left[scene.object_left == 1], 27 / 2, rtol=1e-5)
    np.testing.assert_allclose(scene.disparity_left[scene.object_left == 0], 27 / 6, rtol=1e-5)


def test_rays_along_a_stencilled_card_miss_it() -> None:
    outline = draw_stencil(np.random.default_rng(1), "mesh")
    body = Body(replace(wall(2.0, 1.0), outline=outline), "cpu")
    along = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert body.seen(0.0, along).isinf().all()


def test_what_is_mirrored_depends_on_the_eye_and_the_truth_does_not() -> None:
    look = Look(noise=False, supersample=1)
    pictures, errors = {}, {}
    for share in (0.0, 0.9):
        scene = render(scene_of(wall(3.0, 100, mirror=share)), atlas(), look)
        pictures[share] = scene
        column = np.indices(SIZE)[1] - scene.disparity_left
        rows = np.indices(SIZE)[0].astype(np.float32)
        warped = cv2.remap(scene.right, column.astype(np.float32), rows, cv2.INTER_LINEAR)
        difference = np.abs(warped.astype(float) - scene.left).mean(2)
        errors[share] = difference[:, int(scene.disparity_left.max()) + 2 :].mean()
    np.testing.assert_array_equal(pictures[0.0].disparity_left, pictures[0.9].disparity_left)
    assert pictures[0.9].left.std() > 3 * pictures[0.0].left.std()
    assert errors[0.0] < 2
    assert errors[0.9] > 10


def edge() -> np.ndarray:
    """Dark on the left, bright from column 20 on."""
    picture = np.full((40, 40, 3), 0.1, np.float32)
    picture[:, 20:] = 0.6
    return picture


def softness(picture: np.ndarray) -> float:
    """Columns that the edge takes, from a tenth to nine tenths of the way, in linear light."""
    row = (picture[20, :, 0] / 255.0) ** 2.2
    return float(((row > 0.15) & (row < 0.55)).sum())


def test_only_what_is_out_of_focus_is_blurred() -> None:
    sensor = replace(STILL, aperture=0.1, focus=0.0)
    near = np.full((40, 40), 30.0, np.float32)
    flat, mixed = near.copy(), near.copy()
    mixed[:10] = 5.0  # what is in focus: the least disparity
    same = sensed(sensor, edge(), edge(), (flat, flat))
    assert softness(same[0]) == 0
    blurred = sensed(sensor, edge(), edge(), (mixed, mixed))
    assert softness(blurred[0]) >= 4
    assert softness(blurred[1]) >= 4
    np.testing.assert_allclose(blurred[0][5], same[0][5], atol=1)


def test_a_shaken_edge_stays_where_it_is() -> None:
    flat = np.full((40, 40), 10.0, np.float32)
    left, right = sensed(replace(STILL, shake=(6.0, 0.0)), edge(), edge(), (flat, flat))
    np.testing.assert_array_equal(left, right)
    assert softness(left) >= 4
    row = (left[20, :, 0] / 255.0) ** 2.2
    assert (row[19] + row[20]) / 2 == pytest.approx(0.35, abs=0.01)
    across = sensed(replace(STILL, shake=(0.0, 6.0)), edge(), edge(), (flat, flat))[0]
    assert softness(across) == 0


def test_each_eye_has_its_own_colours_and_gamma() -> None:
    flat = np.full((40, 40), 10.0, np.float32)
    balance = np.array([[1.0, 1, 1], [0.5, 1, 2]])
    left, right = sensed(
        replace(STILL, balance=balance, gamma=(2.2, 1.1)), edge(), edge(), (flat,) * 2
    )
    linear = (right / 255.0) ** 1.1
    np.testing.assert_allclose(linear[0, 0], [0.05, 0.1, 0.2], atol=0.01)
    np.testing.assert_allclose((left[0, 0] / 255.0) ** 2.2, 0.1, atol=0.01)


def test_headroom_decides_how_much_is_burnt_out() -> None:
    bright = np.full((40, 40, 3), 0.02, np.float32)
    bright[:, :18] = 1.0
    usual, burnt = (exposure(replace(STILL, headroom=room), bright) for room in (1.15, 4.0))
    assert usual == pytest.approx(1.15)
    assert burnt == pytest.approx(4.0)
