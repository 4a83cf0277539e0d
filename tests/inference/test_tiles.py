"""Tiles: how they are cut, that their seams do not show, and that the plan's memory is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stereo_pairs import textured_pair

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.files import read_image
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.memory_plan import SLACK, plan_memory, whole_bytes
from ea_psmnet.inference.tiles import BLEND, HALO, SharedContexts, predict_in_tiles, spans
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.psmnet import build_model

ROOT = Path(__file__).parents[2]
SEAM = 0.05
"""Pixels by which tiles may differ from the whole, in the mean."""


@pytest.mark.parametrize(
    ("side", "count", "reach"), [(136, 1, 0), (136, 3, 0), (240, 4, 48), (64, 4, 0)]
)
def test_spans_cover_a_side_and_their_shares_add_up(side, count, reach):
    total = torch.zeros(side)
    for span in spans(side, count, reach=reach):
        assert span.start % 4 == span.stop % 4 == span.first % 4 == 0
        assert span.start == max(0, span.first - HALO - reach)
        assert span.stop == min(side, span.last + HALO)
        assert span.weights(side).min() >= 0
        # Of the halo only the blend counts.
        kept = span.weights(side) > 0
        assert int(kept.sum()) <= span.last - span.first + 2 * BLEND
        total[span.start : span.stop] += span.weights(side)
    torch.testing.assert_close(total, torch.ones(side))


def test_own_parts_shorter_than_their_blends_are_refused():
    with pytest.raises(ValueError, match="5 tiles along 64 feature pixels are too many"):
        spans(64, 5)


def images(matcher, sample):
    return matcher._to_input(sample.left), matcher._to_input(sample.right)


def seams(matcher, left, right, down, across):
    """Mean difference between tiles and the whole, and the whole's spread, in pixels."""
    height, width = (side // 4 for side in left.shape[-2:])
    reach = matcher.max_disparity // 4
    with torch.inference_mode():
        (whole,) = matcher.model(left, right).disparities
        tiled = predict_in_tiles(
            matcher.model, left, right, spans(height, down), spans(width, across, reach=reach)
        ).disparity
    return float((tiled - whole).abs().mean()), float(whole.std())


@pytest.fixture(
    scope="module", params=["ea-light", pytest.param("ea-psmnet-small", marks=pytest.mark.slow)]
)
def bundled(request):
    """A trained network with a smaller range, for a quick test."""
    return StereoMatcher.load(request.param, max_disparity=48, device="cpu", precision="exact")


@pytest.mark.slow
@pytest.mark.parametrize(("down", "across"), [(3, 1), (1, 3), (2, 2)])
def test_seams_of_the_trained_network_are_invisible(bundled, down, across):
    difference, spread = seams(bundled, *images(bundled, textured_pair(256, 384)), down, across)
    assert spread > 2
    assert difference < SEAM


def test_seams_of_a_real_pair_are_invisible(bundled, shared_data):
    pair = shared_data / "stereo" / "mb03_cones"
    left, right = (
        bundled._to_input(read_image(pair / f"{view}.png")) for view in ("left", "right")
    )
    difference, spread = seams(bundled, left, right, 3, 1)
    assert spread > 2
    assert difference < SEAM


def test_without_shared_contexts_seams_would_show(bundled, monkeypatch):
    """What the first round over the tiles is for."""
    pair = images(bundled, textured_pair(256, 384))
    shared, _ = seams(bundled, *pair, 3, 1)
    monkeypatch.setattr("ea_psmnet.inference.tiles.SharedContexts.finish", lambda _: None)
    alone, _ = seams(bundled, *pair, 3, 1)
    assert alone > 3 * shared


def test_one_tile_is_the_whole(bundled):
    difference, _ = seams(bundled, *images(bundled, textured_pair(64, 96)), 1, 1)
    assert difference < 1e-4


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("peak_reach", [0, 2])
def test_the_head_does_as_the_networks(align_corners, peak_reach, monkeypatch):
    monkeypatch.setattr("ea_psmnet.models.head._SLAB_BYTES", 2**18)
    torch.manual_seed(0)
    head = {"align_corners": align_corners, "peak_reach": peak_reach}
    config = PSMNetConfig(max_disparity=32, width=0.25, **head)
    matcher = StereoMatcher(build_model(config).eval(), device="cpu", precision="exact")
    difference, spread = seams(matcher, *images(matcher, textured_pair(64, 96)), 1, 1)
    assert spread > 0.01
    assert difference < 1e-3


def test_contexts_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    module = EfficientAttention(8, key_channels=4, start="published").double()
    volume = torch.randn(1, 8, 4, 12, 10, dtype=torch.float64)
    expected = module(volume)
    contexts = SharedContexts(module)
    with torch.inference_mode(), contexts.attached():
        for part in volume.split([4, 8], dim=3):
            with contexts.gathering(lambda seen: seen):
                module(part)
        contexts.finish()
        parts = [module(part) for part in volume.split([6, 6], dim=3)]
    torch.testing.assert_close(torch.cat(parts, dim=3), expected)
    torch.testing.assert_close(module(volume[..., :4]), module(volume[..., :4].clone()))
    assert "forward" not in vars(module)


def test_a_small_budget_cuts_and_a_smaller_one_is_refused():
    config = preset("ea-psmnet-small")
    size = (2000, 3008)
    whole = whole_bytes(config, size, 4)
    assert plan_memory(config, size, 4, whole).is_whole
    cut = plan_memory(config, size, 4, whole // 2)
    assert len(cut.rows) > 1
    assert len(cut.columns) == 1  # strips come first
    assert cut.bytes <= whole // 2
    assert whole_bytes(config, size, 2) < 0.65 * whole
    with pytest.raises(ValueError, match=r"3008 x 2000 pixels at 192 disparities take .* GiB even"):
        plan_memory(config, size, 4, 2**30)


def test_images_pass_one_at_a_time_before_anything_is_cut(monkeypatch):
    config, seen = PSMNetConfig(max_disparity=32, width=0.25), []
    matcher = StereoMatcher(build_model(config).eval(), device="cpu", precision="exact")
    matcher.model.features.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    sample = textured_pair(64, 96)
    whole = whole_bytes(config, (64, 96), 4)
    for room in (whole, whole - 1):
        monkeypatch.setattr(matcher, "_room", room)
        plan = matcher.plan(64, 96)
        assert len(plan.rows) == len(plan.columns) == 1
        assert plan.bytes <= room
        matcher(sample.left, sample.right)
    assert seen == [2, 1, 1]


def test_the_matcher_predicts_in_tiles_what_does_not_fit(bundled, monkeypatch):
    monkeypatch.setattr("ea_psmnet.inference.memory_plan._ROOM", 0)
    sample = textured_pair(512, 160)
    whole = bundled(sample.left, sample.right).disparity
    monkeypatch.setattr(bundled, "_room", int(0.9 * bundled.plan(512, 160).bytes))
    assert not bundled.plan(512, 160).is_whole
    tiled = bundled(sample.left, sample.right).disparity
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < SEAM
    monkeypatch.setattr(bundled, "_room", 2**20)
    with pytest.raises(ValueError, match="even in the smallest tiles"):
        bundled(sample.left, sample.right)


MEASURED = """
import ctypes
import sys
from dataclasses import replace
import torch
from ea_psmnet.machine import keep_freed_memory
keep_freed_memory()
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.memory_plan import whole_bytes
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.machine import held_bytes, peak_bytes, reset_peak
height, width, disparities, channels, precision, share, pairs = sys.argv[1:]
if channels == "light":
    config = replace(preset("ea-light"), max_disparity=int(disparities))
else:
    config = PSMNetConfig(max_disparity=int(disparities), width=float(channels))
matcher = StereoMatcher(build_model(config).eval(), device="cpu", precision=precision)
small, pair = (
    torch.randint(0, 256, (2, h, w, 3), dtype=torch.uint8).numpy()
    for h, w in ((32, int(disparities)), (int(height), int(width)))
)
matcher(*small)
size = int(height), int(width)
whole = whole_bytes(config, size, 2 if matcher._bf16 else 4, int(pairs))
matcher._room = int(float(share) * whole)
plan, device = matcher.plan(*size), torch.device("cpu")
if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
    libc.malloc_trim(0)  # what was freed and kept would serve the pair
before = held_bytes(device)
reset_peak(device)
matcher.match([pair] * int(pairs))
print(plan.is_whole, whole if plan.is_whole else plan.bytes, peak_bytes(device) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("size", "disparities", "width", "precision", "share", "pairs"),
    [
        ((256, 512), 192, 0.5, "exact", 1, 1),
        ((192, 384), 96, 1, "exact", 1, 1),
        ((128, 256), 192, 0.5, "exact", 1, 4),
        ((256, 512), 192, "light", "fast", 1, 1),
        ((1536, 256), 96, "light", "fast", 0.9, 1),
    ],
)
def test_the_estimate_is_a_bound_and_no_loose_one(
    size, disparities, width, precision, share, pairs
):
    """Resident memory stays under it, and is at such small sizes, no less than a fifth."""
    arguments = map(str, (*size, disparities, width, precision, share, pairs))
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    whole, bound, measured = result.stdout.split()
    assert (whole == "True") == (share == 1)
    assert int(bound) / 5 < int(measured) < int(bound)


def test_a_map_between_all_positions_counts():
    """Its bytes grow with the square of the tile."""
    bare = preset("psmnet-small")
    square = replace(
        bare,
        attention="dot_product",
        attention_sites=("encoder",),
        attention_options={"backend": "naive"},
    )
    positions = 192 * 256 * 512 // 64 // 8
    added = whole_bytes(square, (256, 512), 4) - whole_bytes(bare, (256, 512), 4)
    assert added == pytest.approx(SLACK * 8 * positions**2, rel=0.01)
