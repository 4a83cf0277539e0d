"""Every protocol on cases where they differ, worked out by hand."""

import math

import numpy as np
import pytest
from made_pairs import made_pair, prediction

from ea_psmnet.evaluation.protocols import PROTOCOLS, find_protocols

LIMIT = 192


def run(name, pairs, *, region="all", batch=8):
    """Figures and scores of one protocol on (sample, prediction) pairs."""
    (protocol,) = (p for p in find_protocols([name]) if p.region == region)
    chosen = protocol.chosen(len(pairs))
    assert chosen == set(range(len(pairs)))
    scores = [protocol.measure(sample, disparity, LIMIT) for sample, disparity in pairs]
    return protocol.average(scores, batch), scores


def off(errors, truth=10.0, name="pair", **options):
    """A pair with one pixel an error, all of one truth."""
    sample = made_pair(np.full(len(errors), truth), name, **options)
    return sample, prediction(truth + np.asarray(errors))


def test_one_pass_of_uneven_images_gives_each_its_own_mean():
    """Images of 1, 3 and 2 pixels with errors 6; 1, 1, 1; 0, 12, batches of two.

    Sums 6, 3, 12 over 1, 3, 2 pixels. All pixels: 21 / 6 = 3.5. Images: 6, 1, 6, mean 13 / 3.
    Batches by pixels (PSMNet): (6 + 3) / 4 = 2.25 and 6, mean 4.125. Batches by images (GwcNet):
    (6 + 1) / 2 = 3.5 and 6, mean 4.75.
    """
    pairs = [off([6]), off([1, 1, 1]), off([0, 12])]
    expected = {
        "pooled": 3.5,
        "psmnet": 4.125,
        "gwcnet": 4.75,
        "raft": 13 / 3,
        "kitti": 13 / 3,
        "middlebury": 13 / 3,
    }
    for name, epe in expected.items():
        assert run(name, pairs, batch=2)[0]["EPE"] == pytest.approx(epe), name


def test_which_truth_counts():
    """Truths -3, 0, 5, 192 and one unknown, with errors 1, 2, 4, 8, 16.

    PSMNet: below 192: -3, 0, 5, mean 7 / 3. GwcNet: 0 < d < 192: 5, mean 4. RAFT: |d| < 192: as
    PSMNet. KITTI: d > 0: 5 and 192, mean 6. Middlebury: all known, where the prediction for -3 is
    -2 and clipped to 0: 3, 2, 4, 8, mean 17 / 4.
    """
    truth = np.array([-3, 0, 5, 192, 50])
    sample = made_pair(truth, valid=[1, 1, 1, 1, 0])
    pairs = [(sample, prediction(truth + np.array([1, 2, 4, 8, 16])))]
    expected = {
        "psmnet": (7 / 3, 3),
        "pooled": (7 / 3, 3),
        "gwcnet": (4, 1),
        "raft": (7 / 3, 3),
        "kitti": (6, 2),
        "middlebury": (17 / 4, 4),
    }
    for name, (epe, pixels) in expected.items():
        figures, (score,) = run(name, pairs)
        assert (figures["EPE"], score.errors.pixels) == (pytest.approx(epe), pixels), name


def test_raft_counts_by_magnitude():
    sample = made_pair([-200.0, 10.0])
    _, (score,) = run("raft", [(sample, prediction([-200, 12]))])
    assert (score.errors.pixels, score.errors.epe) == (1, 2)


def test_images_beyond_the_limit():
    """Three images: 1 of 20 pixels below 192, error 4; all below, error 1; none below.

    GwcNet drops the first (5 % < 10 %) and the third, PSMNet counts the first's one pixel, and in
    batches of one scores the third, an empty batch, 0.
    """
    far = made_pair([10.0] + [300.0] * 19, "far")
    pairs = [
        (far, prediction([14.0] + [300.0] * 19)),
        off([1, 1], name="near"),
        (made_pair([300.0, 300.0], "beyond"), prediction([0, 0])),
    ]
    psmnet, scores = run("psmnet", pairs, batch=1)
    assert psmnet["EPE"] == pytest.approx((4 + 1 + 0) / 3)
    assert [bool(s.dropped) for s in scores] == [False, False, True]
    # Batches of three: the far image's pixel joins the two others: (4 + 1 + 1) / 3.
    assert run("psmnet", pairs, batch=3)[0]["EPE"] == pytest.approx(2)
    gwcnet, scores = run("gwcnet", pairs, batch=3)
    assert gwcnet["EPE"] == 1
    assert [s.dropped for s in scores] == [
        "under 10 % of the valid pixels lie below 192",
        "",
        "under 10 % of the valid pixels lie below 192",
    ]
    # Batches of one: those of dropped images score 0.
    assert run("gwcnet", pairs, batch=1)[0]["EPE"] == pytest.approx((0 + 1 + 0) / 3)
    raft, scores = run("raft", pairs)
    assert raft["EPE"] == pytest.approx((4 + 1) / 2)
    assert scores[2].dropped == "no counted pixel"
    # bad-1 is over pixels: one of three.
    assert raft["bad-1"] == pytest.approx(100 / 3)


def test_exactly_ten_percent_below_the_limit_stays():
    truth = [10.0] + [300.0] * 9
    _, (score,) = run("gwcnet", [(made_pair(truth), prediction(truth))])
    assert not score.dropped


def test_gwcnet_counts_the_lower_right_corner():
    """Of 514 x 963 pixels, the uppermost 2 rows and the leftmost 3 columns are cut off."""
    sample = made_pair(np.full((514, 963), 10.0))
    disparity = np.full((514, 963), 10, np.float32)
    disparity[:2] = 99
    disparity[:, :3] = 99
    figures, (score,) = run("gwcnet", [(sample, disparity)])
    assert score.errors.pixels == 512 * 960
    assert figures["EPE"] == 0
    disparity[2, 3] = 10 + 512 * 960
    assert run("gwcnet", [(sample, disparity)])[0]["EPE"] == pytest.approx(1)


def test_gwcnet_without_positive_truth_has_no_figure():
    _, (score,) = run("gwcnet", [(made_pair([0.0, 0.0]), prediction([1, 1]))])
    assert score.dropped == "no counted pixel"


def test_kitti_fills_holes_and_pools_d1():
    """Row one: holes between 8 and 20 become 8, the background; the truth is 8, 8, 8, 20.

    Row two ends in holes, which take their one neighbour, 5, of truth 30 and 5. All in all 1 of 8
    pixels is wrong, by 25. A second image of 2 pixels has 1 wrong by 10. D1: 2 of 10 pixels;
    bad-3: mean of 12.5 and 50; EPE: mean of 25 / 8 and 10 / 2.
    """
    hole = np.nan
    sample = made_pair([[8, 8, 8, 20], [5, 5, 30, 5]])
    first = sample, prediction([[8, hole, hole, 20], [5, 5, hole, hole]])
    figures, _ = run("kitti", [first, off([0, 10])])
    assert figures["D1"] == pytest.approx(20)
    assert figures["bad-3"] == pytest.approx((12.5 + 50) / 2)
    assert figures["EPE"] == pytest.approx((25 / 8 + 5) / 2)


@pytest.mark.parametrize("name", ["kitti", "middlebury"])
def test_non_occluded_pixels_are_those_a_mask_names(name):
    seen = off([1, 9], nonocc=[True, False])
    unknown = off([5, 5], name="no mask")
    figures, scores = run(name, [seen, unknown], region="non-occluded")
    assert figures["EPE"] == 1
    assert scores[0].errors.pixels == 1
    assert scores[1].dropped == "visibility in the right image not known"


@pytest.mark.parametrize("scene", ["PianoL", "Playroom", "Playtable", "Shelves", "Vintage"])
def test_middlebury_weighs_five_scenes_half(scene):
    """Errors 1 and 4, the second at half weight: (1 + 2) / 1.5 = 2."""
    pairs = [off([1], name="trainingQ/PlaytableP"), off([4], name=f"trainingQ/{scene}")]
    figures, _ = run("middlebury", pairs)
    assert figures["EPE"] == pytest.approx(2)
    assert figures["bad-2"] == pytest.approx(100 * 0.5 / 1.5)


def test_middlebury_averages_the_quantiles_of_images():
    """A90 of errors 1 to 10 is 9, of one error of 3 it is 3; RMSE is averaged as well."""
    figures, _ = run("middlebury", [off(range(1, 11)), off([3])])
    assert figures["A90"] == 6
    assert figures["median"] == 4
    assert figures["RMSE"] == pytest.approx((math.sqrt(38.5) + 3) / 2)


def test_middlebury_counts_a_hole_as_bad_but_not_in_the_mean():
    figures, _ = run("middlebury", [off([np.nan, 3])])
    assert (figures["EPE"], figures["bad-4"], figures["bad-2"]) == (3, 50, 100)


def test_raft_draws_400_of_a_large_set():
    (raft,) = find_protocols(["raft"])
    assert raft.chosen(400) == set(range(400))
    drawn = raft.chosen(4370)
    assert len(drawn) == 400
    # The published code seeds NumPy's old generator with 1000 and takes the first 400.
    order = np.random.RandomState(1000).permutation(4370)
    assert drawn == set(order[:400])
    assert sorted(drawn)[:3] == [5, 17, 23]


def test_protocols_are_found_by_name():
    assert [p.name for p in find_protocols([])] == [p.name for p in PROTOCOLS]
    assert [p.name for p in find_protocols(["kitti", "psmnet"])] == ["psmnet", "kitti", "kitti"]
    with pytest.raises(ValueError, match="unknown protocol 'eth': choose from psmnet"):
        find_protocols(["eth"])
