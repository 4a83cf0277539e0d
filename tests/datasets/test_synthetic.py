import json
import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.datasets.synthetic import (
    KINDS,
    Look,
    RenderedScene,
    SyntheticScenes,
    render,
    textures,
)
from ea_psmnet.datasets.synthetic.draw import draw_scene
from ea_psmnet.datasets.synthetic.palette import FACING, NO_CUTS, Palette, card, turn_x, turn_y
from ea_psmnet.datasets.synthetic.scene import Rig, Scene, Solid
from ea_psmnet.datasets.synthetic.textures import Atlas, load_atlas
from ea_psmnet.files import write_image
from ea_psmnet.sample import StereoSample

SIZE = (96, 160)
PLAIN = Look(lighting=False, noise=False, supersample=1)
RIG = Rig(SIZE, focal=150.0, centre=(80.3, 47.1), baseline=0.4)


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    return load_atlas(None, "cpu")


@lru_cache(maxsize=32)
def plain(number: int, kind: str) -> RenderedScene:
    plainly = {"lighting": False, "noise": False, "supersample": 1}
    return SyntheticScenes(seed=5, size=SIZE, kind=kind, **plainly).render(number)


def simple(*solids: Solid) -> RenderedScene:
    """A scene of these solids before the rig's cameras."""
    scene = replace(draw_scene(0, 0, SIZE, 64, "flying"), rig=RIG, solids=solids)
    return render(scene, atlas(), PLAIN)


def material(depth: float = 3.0):
    palette = Palette(np.random.default_rng(0), SIZE, RIG.focal, 1.0)
    return palette.material(depth, weak=0.0)


def wall(depth: float, half: float = 100.0, rotation=FACING) -> Solid:
    return card(np.array([0.0, 0.0, depth]), rotation, (half, half), material(depth))


def pixel_slopes() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.indices(SIZE, dtype=np.float64)
    return (x - RIG.centre[0]) / RIG.focal, (y - RIG.centre[1]) / RIG.focal


def sampled(picture: np.ndarray, column: np.ndarray, interpolation: int) -> np.ndarray:
    rows = np.indices(column.shape)[0].astype(np.float32)
    return cv2.remap(picture, column.astype(np.float32), rows, interpolation)


def flat_areas(number: np.ndarray) -> np.ndarray:
    """Pixels whose 5x5 surroundings are of the same object."""
    kernel = np.ones((5, 5))
    whole = number.astype(np.float32)
    return cv2.dilate(whole, kernel) == cv2.erode(whole, kernel)


def warp_errors(scene: RenderedScene, disparity: np.ndarray) -> np.ndarray:
    """Colour differences between the left view and the right one seen through `disparity`."""
    column = np.indices(SIZE)[1] - disparity
    warped = sampled(scene.right, column, cv2.INTER_LINEAR).astype(float)
    inside = sampled(flat_areas(scene.object_right).astype(np.float32), column, cv2.INTER_LINEAR)
    keep = ~scene.occluded_left & flat_areas(scene.object_left) & (inside == 1)
    return np.abs(warped - scene.left).mean(2)[keep]


@pytest.mark.parametrize("kind", KINDS)
def test_right_view_at_the_disparity_shows_the_left_view(kind: str) -> None:
    right, shifted, flipped = [], [], []
    for number in range(3):
        scene = plain(number, kind)
        right.append(warp_errors(scene, scene.disparity_left))
        shifted.append(warp_errors(scene, scene.disparity_left + 1))
        flipped.append(warp_errors(scene, -scene.disparity_left))
    errors = np.concatenate(right)
    assert len(errors) > 5000
    assert np.median(errors) < 1.5
    assert np.percentile(errors, 95) < 12
    assert np.mean(np.concatenate(shifted)) > 2 * errors.mean()
    assert np.mean(np.concatenate(flipped)) > 3 * errors.mean()


def test_half_a_pixel_of_error_is_seen() -> None:
    errors = {shift: [] for shift in (-0.5, 0.0, 0.5)}
    for number in range(6):
        scene = plain(number, "flying")
        for shift, found in errors.items():
            found.append(warp_errors(scene, scene.disparity_left + shift))
    means = {shift: np.concatenate(found).mean() for shift, found in errors.items()}
    assert means[0.0] < 0.8 * min(means[-0.5], means[0.5])
    assert means[-0.5] == pytest.approx(means[0.5], rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_visible_points_belong_to_the_same_object_in_both_views(kind: str) -> None:
    for number in range(3):
        scene = plain(number, kind)
        column = np.indices(SIZE)[1] - scene.disparity_left
        other = sampled(scene.object_right.astype(np.float32), column, cv2.INTER_NEAREST)
        inside = (column >= 0) & (column <= SIZE[1] - 1)
        seen = ~scene.occluded_left & inside
        same = other == scene.object_left
        surroundings = sampled(
            flat_areas(scene.object_right).astype(np.float32), column, cv2.INTER_NEAREST
        )
        away_from_edges = seen & flat_areas(scene.object_left) & (surroundings == 1)
        assert same[away_from_edges].all()
        interior = seen & flat_areas(scene.object_left)
        assert same[interior].mean() > 0.98  # the nearest pixel may lie beyond an edge
        # What is hidden inside the picture is hidden by something nearer.
        hidden = scene.occluded_left & inside & (surroundings == 1)
        nearer = sampled(scene.disparity_right, column, cv2.INTER_NEAREST)
        farther = nearer[hidden] < scene.disparity_left[hidden] - 0.5
        assert farther.sum() <= 0.01 * hidden.sum()


def test_disparities_of_both_views_agree() -> None:
    for number in range(4):
        scene = plain(number, "layers")
        column = np.indices(SIZE)[1] - scene.disparity_left
        back = sampled(scene.disparity_right, column, cv2.INTER_LINEAR)
        even = sampled(flat_areas(scene.object_right).astype(np.float32), column, cv2.INTER_LINEAR)
        keep = ~scene.occluded_left & flat_areas(scene.object_left) & (even == 1)
        difference = np.abs(back - scene.disparity_left)[keep]
        assert np.median(difference) < 1e-3
        assert np.percentile(difference, 99) < 0.3  # creases of boxes


def test_slanted_plane_has_the_disparity_of_the_formula() -> None:
    rotation = turn_y(0.4) @ turn_x(-0.3)
    scene = simple(wall(3.0, rotation=rotation))
    normal = rotation[:, 2]
    x, y = pixel_slopes()
    depth = normal[2] * 3.0 / (normal[0] * x + normal[1] * y + normal[2])
    expected = RIG.focal * RIG.baseline / depth
    np.testing.assert_allclose(scene.disparity_left, expected, atol=1e-3)
    # The right camera sees the plane from further right.
    depth_right = depth * (1 - normal[0] * RIG.baseline / (normal[2] * 3.0))
    expected_right = RIG.focal * RIG.baseline / depth_right
    np.testing.assert_allclose(scene.disparity_right, expected_right, atol=1e-3)


def test_sphere_has_the_disparity_of_the_formula() -> None:
    centre, radius = np.array([0.1, -0.05, 2.5]), 0.6
    ball = Solid("ellipsoid", centre, FACING, np.full(3, radius), material(), NO_CUTS)
    scene = simple(wall(6.0), ball)
    x, y = pixel_slopes()
    ray = np.stack([x, y, np.ones_like(x)])
    a, b = (ray**2).sum(0), np.tensordot(centre, ray, 1)
    root = b**2 - a * (centre @ centre - radius**2)
    depth = (b - np.sqrt(np.maximum(root, 0))) / a
    on_ball = root > 0
    expected = RIG.focal * RIG.baseline / np.where(on_ball, depth, 6.0)
    np.testing.assert_array_equal(scene.object_left == 1, on_ball)
    np.testing.assert_allclose(scene.disparity_left, expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_sample_is_a_correct_pair(kind: str) -> None:
    scenes = SyntheticScenes(seed=5, size=SIZE, lighting=False, noise=False, supersample=1)
    assert scenes.has_right_truth
    scene = plain(1, kind)
    flipped = scene.mirrored()
    errors = warp_errors(flipped, flipped.disparity_left)
    assert len(errors) > 1000
    assert np.median(errors) < 1.5
    assert np.percentile(errors, 95) < 15
    assert warp_errors(flipped, -flipped.disparity_left).mean() > 2 * errors.mean()
    again = flipped.mirrored()
    for field in vars(scene):
        np.testing.assert_array_equal(getattr(again, field), getattr(scene, field))


def test_samples_tell_what_both_eyes_see() -> None:
    scenes = SyntheticScenes(seed=5, size=SIZE, count=3)
    scene = scenes.render(1)
    sample, mirrored = scenes[1], scenes.mirrored(1)
    np.testing.assert_array_equal(sample.masks["nonocc"], ~scene.occluded_left)
    np.testing.assert_array_equal(mirrored.masks["nonocc"], ~scene.occluded_right[:, ::-1])
    np.testing.assert_array_equal(mirrored.left, scene.right[:, ::-1])
    np.testing.assert_array_equal(mirrored.right, scene.left[:, ::-1])
    np.testing.assert_array_equal(mirrored.disparity, scene.disparity_right[:, ::-1])
    assert mirrored.name == "synthetic/5/000001/mirrored"
    with pytest.raises(IndexError, match="scene 3 of 3"):
        scenes.mirrored(3)


def test_thin_rod_far_away_keeps_its_disparity() -> None:
    rod = Solid("cylinder", np.array([0, 0, 80.0]), turn_x(0.6), np.array([0.2, 0.2, 9]),
                material(80), NO_CUTS)  # fmt: skip
    scene = simple(wall(200.0, half=1000.0), rod)
    on_rod = scene.object_left == 1
    assert on_rod.sum() > 5
    assert np.abs(scene.disparity_left[on_rod] - 60 / 80).max() < 0.1
    np.testing.assert_allclose(scene.disparity_left[~on_rod], 60 / 200, rtol=1e-6)


def test_band_beside_a_card_is_hidden() -> None:
    scene = simple(wall(6.0), wall(2.0, half=0.3))
    near, far = 60 / 2.0, 60 / 6.0
    row = 47
    on_card = scene.object_left[row] == 1
    hidden = scene.occluded_left[row] & ~on_card
    first_column = int(np.floor(far - 0.5))
    assert scene.occluded_left[:, :first_column].all()  # out of the right picture
    band = hidden[first_column + 2 :].sum()
    assert band == pytest.approx(near - far, abs=1)
    left_edge = np.flatnonzero(on_card)[0]
    assert hidden[left_edge - int(near - far) + 1 : left_edge].all()
    assert not scene.occluded_left[row][on_card].any()
    # In the right view the band lies on the card's other side.
    on_card = scene.object_right[row] == 1
    right_edge = np.flatnonzero(on_card)[-1]
    assert scene.occluded_right[row, right_edge + 1 : right_edge + int(near - far)].all()


def test_back_of_a_box_is_hidden_from_the_other_eye() -> None:
    half = np.array([0.15, 0.4, 0.5])
    sides = {}
    for name, left_side in (("beyond both eyes", 0.55), ("between the eyes", 0.05)):
        centre = np.array([left_side + half[0], 0.0, 1.5])
        block = Solid("box", centre, FACING, half, material(), NO_CUTS)
        scene = simple(wall(6.0), block)
        depth = 60 / scene.disparity_left
        side = (scene.object_left == 1) & (depth > 1.01)
        assert side.sum() > 20
        np.testing.assert_allclose((depth * pixel_slopes()[0])[side], left_side, atol=1e-4)
        sides[name] = scene.occluded_left[side]
    assert not sides["beyond both eyes"].any()
    assert sides["between the eyes"].all()  # the right eye looks at the front and the right side


def test_same_number_same_pixels_and_others_differ() -> None:
    first, second = (SyntheticScenes(seed=3, size=SIZE, count=4) for _ in range(2))
    one, again, other = first.render(2), second.render(2), first.render(3)
    for field in vars(one):
        np.testing.assert_array_equal(getattr(one, field), getattr(again, field))
    assert not np.array_equal(one.left, other.left)
    other_seed = SyntheticScenes(seed=4, size=SIZE).render(2)
    assert not np.array_equal(one.disparity_left, other_seed.disparity_left)


def test_appearance_never_changes_the_truth() -> None:
    full = SyntheticScenes(seed=5, size=SIZE, kind="room").render(1)
    bare = plain(1, "room")
    assert not np.array_equal(full.left, bare.left)
    np.testing.assert_array_equal(full.disparity_left, bare.disparity_left)
    np.testing.assert_array_equal(full.occluded_left, bare.occluded_left)


@pytest.mark.parametrize("max_disparity", [24, 64, 192])
def test_disparities_keep_to_the_limit(max_disparity: int) -> None:
    scenes = SyntheticScenes(
        seed=8, size=SIZE, max_disparity=max_disparity, lighting=False, noise=False, supersample=1
    )
    peaks = []
    for number in range(5):
        scene = scenes.render(number)
        assert np.isfinite(scene.disparity_left).all()
        assert scene.disparity_left.min() > 0
        assert (scene.disparity_left > max_disparity).mean() < 0.01
        assert (scene.disparity_right > max_disparity).mean() < 0.01
        assert (scene.object_left >= 0).all()
        peaks.append(np.percentile(scene.disparity_left, 99))
    assert max(peaks) > 1.5 * min(peaks)


@pytest.mark.slow
def test_every_kind_has_its_contents() -> None:
    shapes = set()
    for kind in KINDS:
        for number in range(4):
            scene = draw_scene(0, number, SIZE, 192, kind)
            assert scene.kind == kind
            shapes |= {solid.shape for solid in scene.solids}
            shapes |= {solid.outline.kind for solid in scene.solids if solid.outline}
            shapes |= {"rod" for solid in scene.solids if is_thin(solid)}
            shapes |= {"cut" for solid in scene.solids if len(solid.cuts)}
            assert 2 <= len(scene.solids) <= 320
            shapes |= {"mirror" for solid in scene.solids if solid.material.mirror}
    expected = {"box", "ellipsoid", "cylinder", "card", "mesh", "rod", "cut", "mirror"}
    assert shapes >= expected | {"disc", "blob", "foliage", "lattice", "stencil"}


def is_thin(solid: Solid) -> bool:
    half = np.sort(solid.half)
    return solid.shape != "card" and half[1] < 0.05 * half[2]


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="flying, stage, layers, room, street, garden, bare"):
        draw_scene(0, 0, SIZE, 192, "moon")
    with pytest.raises(ValueError, match="unknown kind 'moon': choose from flying"):
        SyntheticScenes(kind="moon")


def test_shadows_are_cast() -> None:
    scene: Scene = draw_scene(0, 1, SIZE, 64, "flying")
    light = replace(scene.lights[0], position=np.array([-1.0, -0.8, 0]), reach=np.inf, shadows=True)
    white = replace(material(), colours=np.eye(3, 4) * 0 + [[0, 0, 0, 0.5]], detail_strength=0.0,
                    highlight=0.0)  # fmt: skip
    solids = (
        replace(wall(5.0), material=white, casts_shadow=False),
        replace(wall(2.5, half=0.3), material=white),
    )
    scene = replace(scene, rig=RIG, solids=solids, lights=(light,), ambient=np.full(3, 0.1))
    look = Look(noise=False, supersample=1)
    picture = render(scene, atlas(), look)
    light = replace(light, shadows=False)
    bright = render(replace(scene, lights=(light,)), atlas(), look)
    darker = (picture.left.astype(int) < bright.left.astype(int) - 20).all(2)
    assert darker[picture.object_left == 0].sum() > 100
    assert not darker[picture.object_left == 1].any()
    # The middle of the shadow: where the ray from the light past the card meets the wall.
    middle = np.array([-1.0, -0.8]) * (1 - 5.0 / 2.5)
    column, row = np.round(RIG.focal * middle / 5.0 + RIG.centre).astype(int)
    assert darker[row, column]


def test_supersampling_softens_edges_only() -> None:
    sharp = plain(0, "flying")
    plainly = {"lighting": False, "noise": False, "supersample": 2}
    soft = SyntheticScenes(seed=5, size=SIZE, kind="flying", **plainly).render(0)
    changed = (sharp.left != soft.left).any(2)
    assert 0.005 < changed.mean() < 0.5
    kernel = np.ones((3, 3), np.uint8)
    number = sharp.object_left.astype(np.float32)
    edges = cv2.dilate(number, kernel) != cv2.erode(number, kernel)
    assert changed[edges].mean() > 0.5


def test_creases_of_a_turned_box_are_softened() -> None:
    """With a corner towards the camera, two of the faces lean along the same axis of the world."""
    rotation = turn_x(np.arctan(np.sqrt(0.5))) @ turn_y(np.pi / 4)
    half = np.full(3, 0.5)
    vivid = replace(material(2.5), colours=np.eye(3, 4), density=150.0)
    block = Solid("box", np.array([0, 0, 2.5]), rotation, half, vivid, NO_CUTS)
    scene = replace(draw_scene(0, 0, SIZE, 64, "flying"), rig=RIG, solids=(wall(6.0), block))
    sharp = render(scene, atlas(), Look(lighting=False, noise=False, supersample=1))
    soft = render(scene, atlas(), Look(lighting=False, noise=False, supersample=2))
    changed = (sharp.left != soft.left).any(2)
    x, y = pixel_slopes()
    depth = RIG.focal * RIG.baseline / sharp.disparity_left.astype(float)
    points = np.stack([x * depth, y * depth, depth], -1) - block.centre
    face = np.abs(points @ rotation / half).argmax(-1)
    whole = cv2.erode((sharp.object_left == 1).astype(np.uint8), np.ones((5, 5))) > 0
    for other in range(3):  # the crease between the two faces that are not this one
        pair = whole & (face != other)
        crease = np.zeros(SIZE, bool)
        crease[:, :-1] |= pair[:, :-1] & pair[:, 1:] & (face[:, :-1] != face[:, 1:])
        crease[:-1] |= pair[:-1] & pair[1:] & (face[:-1] != face[1:])
        assert crease.sum() > 10
        assert changed[crease].mean() > 0.8
    # Elsewhere on the faces nothing changes.
    assert not changed[whole & flat_areas(face)].any()


def test_sequence_ends_and_stream_does_not() -> None:
    scenes = SyntheticScenes(size=SIZE, count=2)
    samples = list(scenes)
    assert [sample.name for sample in samples] == ["synthetic/0/000000", "synthetic/0/000001"]
    assert isinstance(samples[0], StereoSample)
    assert samples[0].valid.all()
    assert scenes.render(10**6).left.shape == (*SIZE, 3)


@pytest.mark.slow
def test_indices_and_slices_are_those_of_a_list() -> None:
    scenes = SyntheticScenes(size=SIZE, count=5, supersample=1)
    assert scenes[-1].name == "synthetic/0/000004"
    np.testing.assert_array_equal(scenes[-1].left, scenes.render(4).left)
    part = scenes[1:4]
    assert isinstance(part, SyntheticScenes)  # and nothing is rendered
    assert [part[k].name for k in (0, -1)] == ["synthetic/0/000001", "synthetic/0/000003"]
    assert (len(part), len(scenes)) == (3, 5)
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"scene {index} of 5"):
            scenes[index]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"size": (8, 64)}, "height is 8, expected 16 to 16384"),
        ({"size": (10**6, 64)}, "height is 1000000"),
        ({"size": (64, 8)}, "width is 8, expected 16 to 16384"),
        ({"count": -1}, "count is -1, expected 0 to"),
        ({"max_disparity": 0}, "max_disparity is 0, expected 4 to 4096"),
        ({"supersample": 0}, "supersample is 0, expected 1 to 16"),
        ({"split": "val"}, "unknown split 'val': choose from train, test"),
    ],
)
def test_each_argument_is_told_by_itself(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**wrong)


def test_whole_numbers_of_numpys_are_recorded_as_pythons() -> None:
    given = {"seed": np.int64(1), "size": (np.int32(16), 32), "max_disparity": np.uint8(16)}
    plain = SyntheticScenes(seed=1, size=(16, 32), max_disparity=16).settings
    assert json.dumps(SyntheticScenes(**given).settings) == json.dumps(plain)


@pytest.mark.slow
def test_splits_of_a_seed_share_no_scene() -> None:
    train, test = (SyntheticScenes(seed=3, split=split, size=SIZE) for split in ("train", "test"))
    assert test.name(3) == "synthetic/test/3/000003"
    shown = {
        (draw_scene(3, number, SIZE, 192, split=scenes.split).sensor.seed)
        for scenes in (train, test)
        for number in range(5)
    }
    assert len(shown) == 10
    assert not np.array_equal(train.render(0).left, test.render(0).left)
    built = build_dataset("synthetic", split="test", seed=3, size=SIZE, count=1)
    np.testing.assert_array_equal(built[0].left, test.render(0).left)


@pytest.mark.slow
def test_workers_stream_the_same_samples() -> None:
    scenes = pickle.loads(pickle.dumps(SyntheticScenes(size=SIZE, count=3, supersample=1)))
    atlas()  # forked workers share it
    loader = DataLoader(scenes, batch_size=None, num_workers=2, collate_fn=lambda sample: sample)
    for number, sample in enumerate(loader):
        np.testing.assert_array_equal(sample.left, scenes[number].left)


def test_photographs_serve_as_textures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "_procedural", list)
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    write_image(tmp_path / "a.tiff", picture)
    scenes = SyntheticScenes(size=SIZE, textures=tmp_path)
    assert scenes.render(0).left.std() > 1
    with pytest.raises(FileNotFoundError, match="expected image files"):
        SyntheticScenes(size=SIZE, textures=tmp_path / "none").render(0)


def test_an_image_over_the_pixel_limit_is_no_texture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ea_psmnet.images._MAX_PIXELS", 99)
    write_image(tmp_path / "a.png", np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="found none that can be read"):
        load_atlas(tmp_path, "cpu")
