import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.tiny import TINY

from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.training import loop
from ea_psmnet.training.data import validation_samples
from ea_psmnet.training.loop import train
from ea_psmnet.training.processes import StopRequest
from ea_psmnet.training.validation import spread, validate


class Process:
    """Stands in for one of several processes."""

    def __init__(self, index, count):
        self.process_index, self.num_processes = index, count
        self.is_main_process = index == 0


@pytest.fixture(scope="module")
def matcher():
    torch.manual_seed(0)
    return StereoMatcher(build_model(replace(TINY, max_disparity=16)), device="cpu")


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_every_image_counts_once_however_many_processes_share_them(matcher, pairs, count):
    """Six pairs among seven processes: one has nothing to do."""
    dataset = PairFolder(pairs)
    parts = [validate(matcher, dataset, range(6), Process(i, count)) for i in range(count)]
    total = sum((part.errors for part in parts), DisparityErrors())
    expected = DisparityErrors()
    for sample in dataset:
        counted = sample.valid & (sample.disparity < 16)
        predicted = matcher(sample.left, sample.right).disparity
        expected += DisparityErrors.measure(predicted, sample.disparity, counted)
    assert total.pixels == expected.pixels == 6 * 36 * 70
    assert total.epe == pytest.approx(expected.epe)


def test_predictions_to_show_come_with_their_pairs(matcher, pairs):
    shown = validate(matcher, PairFolder(pairs), [4, 2], Process(0, 1)).shown
    assert [sample.name for sample, *_ in shown] == ["4", "2"]
    sample, disparity, epe = shown[1]
    assert np.array_equal(disparity, matcher(sample.left, sample.right).disparity)
    assert epe == pytest.approx(np.abs(disparity - sample.disparity).mean(), rel=1e-5)


class Hanging(PairFolder):
    """Its second pair never comes, but a signal to the process that waits for it."""

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)
        return super().__getitem__(index)


def test_a_signal_is_heard_while_a_pair_is_waited_for(matcher, pairs, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    start = time.monotonic()
    with StopRequest() as stop:
        assert validate(matcher, Hanging(pairs), range(6), Process(0, 1), 1, stop) is None
    assert time.monotonic() - start < 40
    assert active_children() == []


def test_a_few_images_are_spread_over_all():
    assert spread(10, None) == list(range(10))
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 8) == [0, 1, 2]


def test_the_best_weights_are_those_of_the_lowest_error(config, pairs, monkeypatch):
    """Errors are made up: the second of four is the lowest."""
    errors, seen = iter([3.0, 1.0, 2.0, 1.5]), []

    def noting(self, done, *rest):
        network = self.state.result().state_dict()
        seen.append((done, {name: t.clone() for name, t in network.items()}))
        return validate_run(self, done, *rest)

    def made_up(*arguments):
        total = DisparityErrors(pixels=1, predicted=1, absolute=next(errors))
        return replace(validate(*arguments), errors=total)

    validate_run = loop._Trainer._validate
    monkeypatch.setattr(loop._Trainer, "_validate", noting)
    monkeypatch.setattr(loop, "validate", made_up)
    train(replace(config, steps=4, validate_every=1, validate_root=pairs, validate_count=1))
    assert [done for done, _ in seen] == [1, 2, 3, 4]
    best = safetensors.torch.load_file(config.out / "best.safetensors")
    assert all(torch.equal(best[name], t) for name, t in seen[1][1].items())
    assert '"step": 2' in (config.out / "best.json").read_text()


def test_validation_is_logged_and_leaves_the_training_as_it_was(config, pairs, tmp_path):
    alone = safetensors.torch.load_file(train(replace(config, steps=3, out=tmp_path / "alone")))
    checked = replace(config, steps=3, validate_every=2, validate_root=pairs, validate_count=3)
    both = safetensors.torch.load_file(train(checked))
    assert all(torch.equal(alone[name], both[name]) for name in alone)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    logged = events.Scalars("validation/EPE")
    assert [event.step for event in logged] == [2, 3]
    best = min(event.value for event in logged)
    matcher = StereoMatcher.load(config.out / "best.safetensors", device="cpu", precision="exact")
    measured = validate(matcher, PairFolder(pairs), spread(6, 3), Process(0, 1))
    assert measured.errors.epe == pytest.approx(best, rel=1e-4)
    assert '"images": 3' in (config.out / "best.json").read_text()


def test_a_resumed_run_knows_the_best_so_far(config, pairs, monkeypatch):
    """Errors are made up: that of the first step, before the stop, is the lowest."""
    errors = iter([1.0, 2.0, None, 3.0, 1.5])

    def made_up(*arguments):
        if (error := next(errors)) is None:
            raise RuntimeError("stopped")
        total = DisparityErrors(pixels=1, predicted=1, absolute=error)
        return replace(validate(*arguments), errors=total)

    monkeypatch.setattr(loop, "validate", made_up)
    run = replace(config, steps=4, validate_every=1, validate_root=pairs, validate_count=1)
    with pytest.raises(RuntimeError, match="stopped"):
        train(run)
    train(run)
    assert '"step": 1' in (config.out / "best.json").read_text()
    assert next(errors, "none left") == "none left"


def test_a_finished_run_validates_if_that_is_asked_for_later(config, pairs):
    train(replace(config, steps=2))
    later = replace(config, steps=2, validate_every=1, validate_root=pairs, validate_count=1)
    train(later)
    best = (config.out / "best.json").read_text()
    assert '"step": 2' in best
    assert "Finished: 2 steps." in (config.out / "summary.md").read_text()
    (config.out / "best.json").unlink()
    train(later)  # which has nothing left to do
    assert not (config.out / "best.json").exists()
    train(replace(config, steps=2))
    assert "Finished: 2 steps." in (config.out / "summary.md").read_text()


def test_the_best_weights_are_sought_anew_on_other_images(config, pairs, monkeypatch):
    """Errors are made up: those on the second set are higher."""
    errors = iter([1.0, 2.0, 5.0, 4.0])

    def made_up(*arguments):
        total = DisparityErrors(pixels=1, predicted=1, absolute=next(errors))
        return replace(validate(*arguments), errors=total)

    monkeypatch.setattr(loop, "validate", made_up)
    run = replace(config, steps=2, validate_every=1, validate_root=pairs, validate_count=1)
    train(run)
    assert '"step": 1' in (config.out / "best.json").read_text()
    with pytest.warns(UserWarning, match="the best weights are sought anew"):
        train(replace(run, validate_count=2))
    best = (config.out / "best.json").read_text()
    assert '"step": 2' in best
    assert '"EPE": 5.0' in best


def test_the_data_to_validate_on_are_found_or_asked_for(config, pairs, monkeypatch):
    """A named folder without splits is taken whole; training pairs are never validated on."""
    wanted = replace(config, validate_every=1)
    with pytest.raises(ValueError, match=r"has no test split: .* --validate-root"):
        validation_samples(wanted)
    with pytest.raises(ValueError, match=r"has no test split: .* --validate-root"):
        validation_samples(replace(wanted, data="auto"))
    with pytest.raises(ValueError, match="'kitti2015' needs --validate-root"):
        validation_samples(replace(wanted, validate_data="kitti2015"))
    for data in ("folder", "auto"):
        named = replace(wanted, validate_data=data, validate_root=pairs)
        assert len(validation_samples(named)) == 6
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            shutil.copytree(next(pairs.iterdir()), config.out.parent / f"split/{split}/{number}")
    split = replace(wanted, root=config.out.parent / "split")
    assert len(validation_samples(split)) == 2
    assert len(validation_samples(replace(split, validate_root=split.root))) == 2
    scenes = replace(wanted, data="synthetic", root=None)
    assert len(validation_samples(replace(scenes, validate_root=pairs))) == 6
    with pytest.raises(ValueError, match="validate_data synthetic is rendered"):
        validation_samples(replace(scenes, validate_data="synthetic", validate_root=pairs))
    passes = replace(wanted, data="sceneflow", render_pass="final", validate_root=pairs)
    assert len(validation_samples(replace(passes, validate_data="auto"))) == 6
    monkeypatch.setattr(SyntheticScenes, "prepare", lambda self: None)  # textures take seconds
    scenes = validation_samples(replace(wanted, validate_data="synthetic", validate_count=7))
    assert len(scenes) == 7
    assert scenes.split == "test"


def test_truth_that_does_not_count_is_unknown_in_what_is_shown(matcher, pairs):
    """Some files have 1e30 where nothing is known: a picture's colours would stretch to it."""
    truth = np.full((36, 70), 3, np.float32)
    truth[:5], truth[5:9] = 1e30, 16
    np.save(pairs / "4" / "disp.npy", truth)
    (shown,) = validate(matcher, PairFolder(pairs), [4], Process(0, 1)).shown
    assert np.array_equal(shown.sample.valid, truth == 3)
    assert shown.sample.disparity.max() == 3
