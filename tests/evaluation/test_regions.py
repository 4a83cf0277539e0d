import numpy as np
from made_pairs import made_pair

from ea_psmnet.evaluation.regions import (
    ALL,
    FAR_FROM_EDGES,
    NEAR_EDGES,
    NON_OCCLUDED,
    OCCLUDED,
    REGIONS,
    near_edges,
    regions,
)


def test_ranges_and_edges_each_divide_the_counted_pixels():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 250, (40, 60)).repeat(5, 0).repeat(5, 1)
    sample = made_pair(truth, valid=rng.random(truth.shape) < 0.7, nonocc=truth > 30)
    parts = regions(sample, 192)
    assert tuple(parts) == REGIONS
    np.testing.assert_array_equal(parts[ALL], sample.valid & (sample.disparity < 192))
    for names in ((NON_OCCLUDED, OCCLUDED), (NEAR_EDGES, FAR_FROM_EDGES), REGIONS[5:]):
        np.testing.assert_array_equal(sum(parts[name].astype(int) for name in names), parts[ALL])
    np.testing.assert_array_equal(parts[OCCLUDED], parts[ALL] & (truth <= 30))


def test_a_range_holds_its_lower_end():
    parts = regions(made_pair([15.9, 16.0, 31.9, 32.0]), 192)
    assert parts["16 to 32 px"].tolist() == [[False, True, True, False]]


def test_truth_at_the_limit_does_not_count():
    sample = made_pair([0.0, 191.9, 192.0, 5.0], valid=[1, 1, 1, 0])
    assert regions(sample, 192)[ALL].tolist() == [[True, True, False, False]]


def test_without_a_mask_nothing_is_told_of_occlusion():
    parts = regions(made_pair([1.0, 2.0]), 192)
    assert NON_OCCLUDED not in parts
    assert OCCLUDED not in parts


def test_edges_are_jumps_of_more_than_two_pixels_and_reach_four_pixels():
    truth = np.full((1, 20), 5.0)
    truth[0, 10:] = 7.1
    expected = np.zeros((1, 20), bool)
    expected[0, 9 - 4 : 10 + 4 + 1] = True
    np.testing.assert_array_equal(near_edges(made_pair(truth)), expected)
    np.testing.assert_array_equal(near_edges(made_pair(truth.T)), expected.T)
    truth[0, 10:] = 7.0
    assert not near_edges(made_pair(truth)).any()


def test_no_edge_is_seen_beside_unknown_truth():
    valid = np.ones(20, bool)
    valid[10] = False
    truth = np.where(np.arange(20) < 10, 5.0, 50.0)
    assert not near_edges(made_pair(truth, valid=valid)).any()
