"""Training data: batches, sampling order, mixtures."""

import itertools
from collections import Counter
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_psmnet.datasets.augment import AUGMENTATIONS, random_crop
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.config import Source, parse_source
from ea_psmnet.training.data import Order, StepSampler, StereoBatch, TrainingSamples


def sample(number, height=8, width=12):
    image = np.full((height, width, 3), number, np.uint8)
    image[:, :, 1] = np.arange(width)
    disparity = np.full((height, width), number / 2, np.float32)
    return StereoSample(image, image + 1, disparity, disparity >= 0, f"s{number}")


def drawn(dataset, positions):
    return [int(dataset[p].name[1:]) for p in positions]


def test_each_epoch_sees_every_sample_once_in_another_order():
    dataset = TrainingSamples([[sample(i) for i in range(20)]], (4, 6), seed=0)
    first, second = drawn(dataset, range(20)), drawn(dataset, range(20, 40))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_a_position_decides_sample_and_crop():
    base = [sample(i) for i in range(20)]
    forward = TrainingSamples([base], (4, 6), seed=0)
    everything = [forward[p] for p in range(30)]
    later = TrainingSamples([base], (4, 6), seed=0)[25]
    assert later.name == everything[25].name
    assert np.array_equal(later.left, everything[25].left)
    other = TrainingSamples([base], (4, 6), seed=1)
    assert [s.name for s in everything] != [other[p].name for p in range(30)]


def test_crops_vary():
    dataset = TrainingSamples([[sample(0)]], (4, 6), seed=0)
    assert len({int(dataset[p].left[0, 0, 1]) for p in range(50)}) > 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2])
def test_processes_share_every_step_without_overlap(world, micro):
    batch = 12
    parts = [
        list(StepSampler(5, 8, batch=batch, micro=micro, rank=rank, world=world))
        for rank in range(world)
    ]
    assert all(len(micro_batch) == micro for part in parts for micro_batch in part)
    per_step = batch // (micro * world)
    for index, step in enumerate(range(5, 8)):
        taken = [
            p for part in parts for m in part[index * per_step : (index + 1) * per_step] for p in m
        ]
        assert sorted(taken) == list(range(step * batch, (step + 1) * batch))
    assert len(StepSampler(5, 8, batch=batch, micro=micro, world=world)) == len(parts[0])


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(
        ValueError,
        match=r"batch 24 is not a multiple of micro-batch 5 x 2 processes: try --batch 30",
    ):
        StepSampler(0, 1, batch=24, micro=5, world=2)


def test_stacking_keeps_every_value_in_its_place():
    samples = [sample(3), sample(7)]
    batch = StereoBatch.stack(samples)
    assert batch.left.shape == (2, 3, 8, 12)
    assert batch.left.dtype == torch.uint8
    for i, s in enumerate(samples):
        assert np.array_equal(batch.left[i].permute(1, 2, 0).numpy(), s.left)
        assert np.array_equal(batch.right[i].permute(1, 2, 0).numpy(), s.right)
        assert np.array_equal(batch.disparity[i].numpy(), s.disparity)
        assert np.array_equal(batch.valid[i].numpy(), s.valid)


def test_a_batch_comes_from_another_process_as_it_was():
    """Without shared memory, strides and all: which layout a convolution takes hangs on them."""
    batch = StereoBatch.stack([sample(3), sample(7)])
    sent = bytes(ForkingPickler.dumps(batch))
    assert len(sent) > sum(part.nbytes for part in (batch.left, batch.right, batch.disparity))
    came = ForkingPickler.loads(sent)
    assert came.names == batch.names
    for part in ("left", "right", "disparity", "valid"):
        ours, theirs = getattr(batch, part), getattr(came, part)
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_micro_batches_are_the_same_however_many_processes_share_them():
    alone = list(StepSampler(0, 2, batch=12, micro=2))
    shared = [list(StepSampler(0, 2, batch=12, micro=2, rank=r, world=3)) for r in range(3)]
    assert sorted(alone) == sorted(m for part in shared for m in part)


def test_order_and_crops_draw_from_separate_streams():
    dataset = TrainingSamples([[sample(i) for i in range(4)]], (4, 6), seed=5)
    order = np.random.default_rng([0, 5, 1]).permutation(4)
    assert drawn(dataset, range(4, 8)) == list(order)
    cropped = random_crop(sample(int(order[2])), (4, 6), np.random.default_rng([1, 5, 6]))
    assert np.array_equal(dataset[6].left, cropped.left)
    assert np.array_equal(dataset[6].right, cropped.right)


def test_what_processes_hold_at_once_is_what_one_with_larger_micro_batches_holds():
    """So that shared batch statistics agree."""
    alone = list(StepSampler(3, 5, batch=12, micro=4))
    shared = [list(StepSampler(3, 5, batch=12, micro=2, rank=r, world=2)) for r in range(2)]
    together = [sorted(a + b) for a, b in zip(*shared, strict=True)]
    assert together == [sorted(pile) for pile in alone]


def test_batches_keep_names_and_count_pixels():
    known = sample(6)
    known.valid[0] = False
    batch = StereoBatch.stack([known, sample(50)])
    assert batch.names == ("s6", "s50")
    assert batch.counted(25).item() == 7 * 12  # of s50 all lie at 25, which is not searched
    moved = batch.to(torch.device("cpu"))
    assert moved.names == batch.names
    assert torch.equal(moved.valid, batch.valid)


class TwoEyed(FrameDataset):
    """Pairs whose right views have truth."""

    has_right_truth = True

    def __init__(self, samples, mirrored):
        super().__init__(())
        self.samples, self.twins = samples, mirrored

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def mirrored(self, index):
        return self.twins[index]


def test_mirroring_takes_half_of_the_samples_that_have_a_twin():
    pairs, twins = [sample(i) for i in range(4)], [sample(i + 100) for i in range(4)]
    recipe = replace(AUGMENTATIONS["none"], mirror=0.5)
    both = TrainingSamples([TwoEyed(pairs, twins)], (4, 6), 0, recipe=recipe)
    share = sum(number >= 100 for number in drawn(both, range(400))) / 400
    assert share == pytest.approx(0.5, abs=0.08)
    assert drawn(both, range(50)) == drawn(both, range(50))
    alone = TrainingSamples([pairs], (4, 6), 0, recipe=recipe)
    assert all(number < 100 for number in drawn(alone, range(50)))


def test_every_part_of_a_mixture_must_fit_the_crop():
    good, small = [sample(0)], [sample(1, height=3)]
    with pytest.raises(ValueError, match="crop"):
        TrainingSamples([good, small], (4, 6), 0, weights=[1, 1]).check()


# Mixtures -----------------------------------------------------------------------------------------


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
        ("sceneflaw:/data:1", "unknown dataset 'sceneflaw': choose from auto, sceneflow"),
        ("sceneflow:/data:x", "the weight 'x' must be a positive number"),
        ("sceneflow:/data:0", "must be a positive number"),
        ("sceneflow:/data:inf", "must be a positive number"),
        ("sceneflow:/data:nan", "must be a positive number"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_source(text)
