"""What stands close before scenes: large plain blocks, thin bars, and neither beyond the limit."""

import numpy as np
import pytest

from datasets.synthetic import KINDS, draw
from datasets.synthetic.body import Body
from datasets.synthetic.draw import foreground
from datasets.synthetic.palette import Palette, box
from datasets.synthetic.scene import Solid

SIZE = (256, 512)
FOCAL = 500.0
NEAR = 1.5


def drawn(count: int = 60) -> list[list[Solid]]:
    return [foreground(palette(seed), NEAR) for seed in range(count)]


def palette(seed: int) -> Palette:
    return Palette(np.random.default_rng(seed), SIZE, FOCAL, 1.0)


def is_bar(solid: Solid) -> bool:
    return float(np.sort(solid.half)[1]) < 0.1 * solid.half.max()


def test_all_of_it_is_behind_the_nearest_depth() -> None:
    for solids in drawn():
        assert solids
        for solid in solids:
            assert Body(solid, "cpu").corners[:, 2].min() > NEAR - 1e-6


def test_blocks_are_large_and_plain_and_bars_are_thin() -> None:
    blocks = [solid for solids in drawn() for solid in solids if not is_bar(solid)]
    bars = [solid for solids in drawn() for solid in solids if is_bar(solid)]
    assert min(len(blocks), len(bars)) > 20
    for block in blocks:
        wide = 2 * block.half[0] * FOCAL / (block.centre[2] - block.depth_reach)
        assert 0.33 * 512 - 1 < wide < 0.5 * 512 + 1
        assert not block.material.colours[:, :3].any()
    # Seen from the side, a square bar is up to twice as thick as it is in front.
    thick = np.array([2 * np.sort(bar.half)[:2] * FOCAL / bar.centre[2] for bar in bars])
    assert (thick.min(1) > 0.9).all()
    assert (thick.max(1) < 2 * 6.2).all()
    assert 2 < np.median(thick) < 6


def test_a_third_of_it_stands_at_a_border() -> None:
    centres = np.array([solid.centre for solids in drawn(200) for solid in solids])
    aside = np.abs(centres[:, 0] / centres[:, 2]) * FOCAL / SIZE[1]
    assert 0.25 < ((aside > 0.43) & (aside < 0.51)).mean() < 0.5
    assert (aside < 0.3).mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_coarse_look_misses_keeps_to_the_limit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 0.5
    wire = box(np.array([0, 0, depth]), np.array([1e-6, 0.1, 1e-6]), palette(0).paint(depth))
    monkeypatch.setattr(draw, "foreground", lambda *_: [wire])
    monkeypatch.setattr(draw, "_FOREGROUND", 1.0)
    for number in range(12):
        scene = draw.draw_scene(21, number, (48, 96), 40, kind)
        assert scene.solids[-1] is wire
        assert scene.rig.focal * scene.rig.baseline / depth < 40


def test_paint_shows_nothing_but_its_colour() -> None:
    for seed in range(20):
        paint = palette(seed).paint(2.0)
        assert not paint.colours[:, :3].any()
        assert paint.detail_strength == 0 == paint.mirror
