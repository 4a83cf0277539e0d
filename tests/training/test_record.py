"""What a run leaves behind for people and scripts, killed and resumed or not."""

import contextlib
import json
import resource
import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.tiny import FACTS, FIGURES, OUTCOME

from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DISPARITY_BANDS, DisparityErrors
from ea_psmnet.training import loop
from ea_psmnet.training.logs import read_metrics
from ea_psmnet.training.loop import train
from ea_psmnet.training.record import RunRecord
from ea_psmnet.training.run_folder import read_sessions


def board(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def steps_of(records, kind):
    return [record["step"] for record in records if record["kind"] == kind]


@pytest.fixture
def config(config, pairs):
    return replace(config, validate_every=2, validate_root=pairs, validate_count=5)


# A run and what it records ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_told_in_every_place(config, pictures, capsys):
    train(replace(config, steps=3))
    records, events = read_metrics(config.out / "metrics.jsonl"), board(config.out)
    steps = [record for record in records if record["kind"] == "step"]
    assert steps_of(records, "step") == [1, 2, 3]
    assert steps_of(records, "validation") == [2, 3]
    for name in ("loss", "loss_1", "lr", "gradient_norm", "epe", "waiting", "memory"):
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert logged == [(r["step"], pytest.approx(r[name], rel=1e-5)) for r in steps]
    for record in steps:
        outputs = [record[f"loss_{number}"] for number in (1, 2, 3)]
        assert np.dot(outputs, (0.5, 0.7, 1.0)) == pytest.approx(record["loss"], rel=1e-5)
        assert len({*outputs, record["loss"]}) == 4
    check_sheets(events)
    told = capsys.readouterr().err
    for part in ("3/3", "loss ", "EPE ", " samples/s", " GiB", "wait ", "validation after 3"):
        assert part in told
    assert "Finished: 3 steps." in (config.out / "summary.md").read_text()
    assert cv2.imread(str(config.out / "curves.png")).std() > 10


def check_sheets(events):
    """The same four of five images at each of the two validations; errors lessen or not."""
    tags = [f"sheets/{number}" for number in range(4)]
    assert events.Tags()["images"] == tags
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [2, 3]
    sheets = [decoded(events.Images(tag)[-1]) for tag in tags]
    assert all(sheet.shape[1] == 1000 for sheet in sheets)
    assert all((one != sheets[0]).any() for one in sheets[1:] if one.shape == sheets[0].shape)


def decoded(event):
    return cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)


def test_errors_are_told_by_true_disparity(config, pairs):
    """Truths are 3, 5, ... 13, and 20 once, which is above the maximum and does not count."""
    np.save(pairs / "1" / "disp.npy", np.full((36, 70), 20, np.float32))
    np.save(pairs / "2" / "disp.npy", np.full((36, 70), 17, np.float32))
    config = replace(config, max_disparity=48, validate_count=6, steps=2)
    train(config)
    (record,) = (r for r in read_metrics(config.out / "metrics.jsonl") if r["kind"] == "validation")
    matcher = StereoMatcher.load(config.out / "model.safetensors", device="cpu", precision="exact")
    near, far = DisparityErrors(), DisparityErrors()
    for sample in PairFolder(pairs):
        predicted = matcher(sample.left, sample.right).disparity
        one = DisparityErrors.measure(predicted, sample.disparity, sample.valid)
        near, far = (near, far + one) if sample.disparity[0, 0] >= 16 else (near + one, far)
    assert record["images"] == 6
    assert list(record["by_range"]) == list(DISPARITY_BANDS)
    for band, errors in (("0 to 16 px", near), ("16 to 32 px", far)):
        assert record["by_range"][band] == pytest.approx(errors.figures(), rel=1e-3)
    assert record["EPE"] == pytest.approx((near + far).epe, rel=1e-3)
    assert record["by_range"]["32 to 64 px"]["EPE"] is None
    tags = board(config.out).Tags()["scalars"]
    shown = {tag for tag in tags if tag.startswith("validation-")}
    names = ("EPE", "bad-1", "bad-2", "bad-3")
    bands = ("0_to_16_px", "16_to_32_px")
    assert shown == {f"validation-{name}/{band}" for name in names for band in bands}


@pytest.mark.slow
def test_a_resumed_run_repeats_no_record_and_loses_none(config, monkeypatch):
    """It dies in step 4, after a checkpoint and a validation at 2; a write is cut short, too."""
    judge = loop._Trainer._judge

    def dying(self, step, *rest):
        if step == 3:
            raise RuntimeError("killed")
        judge(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "_judge", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(config)
    path = config.out / "metrics.jsonl"
    assert steps_of(read_metrics(path), "step") == [1, 2, 3]
    assert "Not finished: 3 of 6 steps" in (config.out / "summary.md").read_text()
    path.write_text(path.read_text() + '{"kind": "step", "step": 4, "elap')
    train(config)
    records, events = [json.loads(line) for line in path.open()], board(config.out)
    assert steps_of(records, "step") == [1, 2, 3, 4, 5, 6]
    assert steps_of(records, "validation") == [2, 4, 6]
    elapsed = [record["elapsed"] for record in records]
    assert elapsed == sorted(elapsed)
    for tag, expected in (("train/loss", range(1, 7)), ("validation/EPE", (2, 4, 6))):
        assert [event.step for event in events.Scalars(tag)] == list(expected)
    sessions = read_sessions(config.out / "environment.json")
    assert [session["steps_before"] for session in sessions] == [0, 2]
    assert "2 starts" in (config.out / "summary.md").read_text()


def test_a_finished_run_stays_as_it_is(config):
    train(replace(config, steps=2))
    before = {path.name: path.read_bytes() for path in config.out.glob("*.*")}
    train(replace(config, steps=2))
    assert {path.name: path.read_bytes() for path in config.out.glob("*.*")} == before


def test_processes_other_than_the_main_one_write_nothing(tmp_path, capsys):
    with RunRecord(tmp_path, 0, 2, FACTS, enabled=False) as record:
        record.step(1, FIGURES)
        record.validation(1, OUTCOME)
        record.note("nobody hears")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


# Disks and damage -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_files():
    """A limit on the size of files, set when called, stands in for a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    finally:
        # Before the test ends: what pytest then writes may go to a longer file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("part", "name"), [(0, "metrics.jsonl"), (1, "tensorboard")])
def test_a_full_disk_is_told_in_a_line(tmp_path, capfd, part, name):
    """Whichever write fails first."""

    def fill():
        with small_files() as limit, RunRecord(tmp_path, 0, 10**4, FACTS) as record:
            limit()
            for step in range(1, 1000):
                record._parts[part].step(step, FIGURES)

    with pytest.raises(OSError, match=rf"{name}: not written \(") as caught:
        fill()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "summary.md").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) < 10


def test_an_event_file_that_cannot_be_begun_is_told_with_its_place(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    hook = threading.excepthook
    with pytest.raises(OSError, match=r"tensorboard: not written \(File exists\)"):
        RunRecord(tmp_path, 0, 5, FACTS)
    assert threading.excepthook is hook


def test_a_summary_that_damage_forbids_does_not_fail_the_run(tmp_path, capsys):
    with RunRecord(tmp_path, 0, 5, FACTS) as record:
        record.step(1, FIGURES)
        (tmp_path / "config.json").write_text('{"network": 3}')
    assert "warning: no summary: " in capsys.readouterr().err
    assert not (tmp_path / "summary.md").exists()


class Unclosable:
    def close(self):
        raise OSError("second")


def test_the_first_error_is_the_one_that_is_told(tmp_path):
    def end(error):
        with RunRecord(tmp_path, 0, 5, FACTS) as record:
            record._parts = (*record._parts, Unclosable())
            if error:
                raise error

    with pytest.raises(OSError, match="first"):
        end(OSError("first"))
    with pytest.raises(OSError, match="second"):
        end(None)
