import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.training.mixture import Order, Source, parse_source


def places(order, positions):
    return [order[p] for p in positions]


def test_weights_are_met_exactly_in_every_block():
    order = Order([50, 7, 300], [3, 1, 4], seed=0)
    for block in (range(1000), range(5000, 6000)):
        assert Counter(p.source for p in places(order, block)) == {0: 375, 1: 125, 2: 500}
    assert Counter(p.source for p in places(Order([5, 5], [2, 1], 0), range(1000))) == {
        0: 667,
        1: 333,
    }


def test_a_dataset_of_a_mixture_comes_whole_before_it_comes_again():
    order = Order([50, 7], [3, 1], seed=0)
    drawn = [p.sample for p in places(order, range(3000)) if p.source == 1]
    assert len(drawn) == 750
    passes = [drawn[i : i + 7] for i in range(0, 749, 7)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) > 50


def test_a_position_decides_whatever_was_asked_before():
    forward = places(Order([50, 7], [3, 1], seed=0), range(2500))
    order = Order([50, 7], [3, 1], seed=0)
    rng = np.random.default_rng(0)
    for position in rng.permutation(2500)[:300]:
        assert order[int(position)] == forward[position]
    assert forward != places(Order([50, 7], [3, 1], seed=1), range(2500))


def test_the_parts_are_shuffled():
    sources = [p.source for p in places(Order([50, 50], [1, 1], 0), range(2000))]
    changes = sum(a != b for a, b in itertools.pairwise(sources))
    assert 850 < changes < 1150
    assert sources[:1000] != sources[1000:]


def test_a_single_dataset_has_the_order_of_one():
    order = np.random.default_rng([0, 5, 1]).permutation(20)
    assert [Order([20], [1.0], 5)[p].sample for p in range(20, 40)] == list(order)


def test_a_weight_that_would_never_be_drawn_is_refused():
    with pytest.raises(ValueError, match="differ by more than 1000 to one"):
        Order([5, 5], [1, 5000], 0)


def test_sources_are_read_from_text():
    assert parse_source("sceneflow:/a/b:2.5") == Source("sceneflow", Path("/a/b"), 2.5)
    assert parse_source("synthetic::1") == Source("synthetic", None, 1.0)
    assert parse_source("folder:C:/odd:1").root == Path("C:/odd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sceneflow", "expected NAME:ROOT:WEIGHT"),
        ("sceneflow:/data", "expected NAME:ROOT:WEIGHT"),
        ("sceneflaw:/data:1", "no dataset 'sceneflaw'; choose one of auto, sceneflow"),
        ("sceneflow:/data:x", "the weight 'x' must be a positive number"),
        ("sceneflow:/data:0", "must be a positive number"),
        ("sceneflow:/data:inf", "must be a positive number"),
        ("sceneflow:/data:nan", "must be a positive number"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_source(text)
