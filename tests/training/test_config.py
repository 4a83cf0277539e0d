"""Runs that cannot work are refused in one line, before anything is loaded or written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training.tiny import TINY

from ea_psmnet.files import write_json
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.loop import train


def test_a_folder_with_another_run_is_refused(config):
    train(replace(config, steps=1))
    with pytest.raises(ValueError, match=r"holds a run with lr 0.002, not 0.001"):
        train(replace(config, steps=1, lr=1e-3))


def test_another_batch_is_named_though_its_micro_batch_was_chosen(config):
    chosen = replace(config, steps=1, batch=2, micro_batch=None)
    train(chosen)
    with pytest.raises(ValueError, match="holds a run with batch 2, not 3"):
        train(replace(chosen, batch=3))


def test_a_run_of_an_older_version_with_an_option_that_is_settled_is_refused(config):
    config.out.mkdir()
    recorded = config.out / "config.json"
    recorded.write_text(json.dumps(config.to_dict() | {"mirror": True}))
    with pytest.raises(ValueError, match="holds a run with mirror True, not False"):
        train(config)
    recorded.write_text(json.dumps(config.to_dict() | {"mirror": False, "max_skipped": 3}))
    train(config)
    assert json.loads(recorded.read_text())["loss_weights"] == [0.5, 0.7, 1.0]


def test_a_run_keeps_to_its_network_though_the_file_that_describes_it_changes(config, tmp_path):
    path = tmp_path / "network.json"
    write_json(path, TINY.to_dict())
    run = replace(config, network=path, steps=1)
    train(run)
    recorded = json.loads((config.out / "config.json").read_text())["structure"]
    assert recorded["attention"] == "efficient"
    assert recorded["width"] == 0.25
    moved = replace(run, network=path.rename(tmp_path / "moved.json"))
    train(moved)
    write_json(moved.network, TINY.to_dict() | {"attention": "hydra"})
    with pytest.raises(ValueError, match="a network with attention efficient, not hydra") as caught:
        train(moved)
    assert "another --out" in str(caught.value)


def test_a_dataset_that_has_lost_or_won_samples_is_told(config, pairs):
    """Their order would be another one: some would come twice, others never."""
    train(replace(config, steps=1))
    shutil.rmtree(pairs / "3")
    with pytest.raises(
        ValueError, match=r"a run on datasets of \[6\] samples, which now have \[5\]"
    ):
        train(replace(config, steps=1))
    settings = config.out / "config.json"
    older = json.loads(settings.read_text())
    del older["samples"]
    settings.write_text(json.dumps(older))
    train(replace(config, steps=1))
    assert json.loads(settings.read_text())["samples"] == [5]


def test_nothing_is_written_when_the_settings_cannot_work(config, tmp_path):
    for changes in ({"root": tmp_path / "missing"}, {"init": tmp_path / "none.safetensors"}):
        with pytest.raises(FileNotFoundError):
            train(replace(config, **changes))
    with pytest.raises(ValueError, match="has no test split"):
        train(replace(config, validate_every=1))
    assert not config.out.exists()


def test_a_crop_that_does_not_fit_is_one_line_before_anything_is_written(config):
    with pytest.raises(ValueError, match="crop") as caught:
        train(replace(config, crop=(48, 64), workers=1))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


def test_a_folder_of_other_things_is_refused(config):
    config.out.mkdir()
    (config.out / "model.safetensors").touch()
    with pytest.raises(
        ValueError, match=r"holds weights but no config\.json of a run: .*delete model"
    ):
        train(config)
    (config.out / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: invalid JSON: .*; damaged: to continue"):
        train(config)


@pytest.mark.parametrize("micro", ["many", 0, -1, 1.5, [2]])
def test_a_micro_batch_edited_to_nonsense_is_told_in_a_line(config, micro):
    config.out.mkdir()
    (config.out / "config.json").write_text(json.dumps({"micro_batch": micro}))
    with pytest.raises(ValueError, match=r"config.json: damaged, micro_batch cannot be") as told:
        train(replace(config, micro_batch=None))
    assert "\n" not in str(told.value)


def test_a_run_whose_settings_are_damaged_goes_on_as_the_message_says(config):
    run = replace(config, steps=2)
    train(run)
    settings, model = config.out / "config.json", config.out / "model.safetensors"
    before = model.read_bytes()
    for text in ("{", "", "[]", "[" * 10**5):
        settings.write_text(text)
        with pytest.raises(ValueError, match=r"config.json: .*; damaged: .* delete it and model.s"):
            train(run)
    settings.unlink()
    model.unlink()
    train(run)
    assert model.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_told_before_data_are_looked_for(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError, match="a file is in the way"):
        train(replace(config, out=tmp_path / "file" / "run", root=tmp_path / "missing"))


def test_the_defaults_are_the_papers():
    config = TrainingConfig(out=Path("run"), root=Path("data"))
    assert (config.batch, config.lr, config.epochs) == (24, 2e-3, 100)
    assert (config.crop, config.max_disparity, config.schedule) == ((256, 512), 192, "constant")
    assert config.cross_entropy == config.likelihood == 0


NO_DATA = {"data": "sceneflow", "root": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0, expected 1 to 65536"),
        ({"crop": (30, 64)}, "multiples of 16"),
        ({"max_disparity": 192}, "wider than the crop"),
        ({"root": None}, "needs --root"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("inf")}, "finite"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"ema": 1.0}, "ema must lie between 0 and 1"),
        ({"milestones": (2.0,)}, "milestones are fractions"),
        ({"milestones": (0.5,)}, "milestones has no effect without --schedule step"),
        ({"decay": 0.3}, "decay has no effect without --schedule step"),
        ({"cross_entropy_target": "adaptive"}, "no effect without --cross-entropy"),
        ({"cross_entropy": -0.1}, "cross_entropy must be 0 or more"),
        ({"likelihood": float("inf")}, "likelihood must be 0 or more"),
        ({"micro_batch": 0}, "micro_batch is 0, expected 1 to 65536"),
        ({"micro_batch": 3}, "not a multiple of micro-batch 3"),
        ({"workers": -1}, "workers is -1, expected 0 to 1024"),
        ({"seed": -1}, "seed is -1, expected 0 to"),
        ({"steps": 0}, "steps is 0, expected 1 to 1000000000"),
        ({"keep": 0}, "keep is 0, expected 1 to 1000000"),
        ({"batch": 10**12}, "batch is 1000000000000, expected"),
        ({"steps": 10**30}, "steps is 1000000000000000000000000000000, expected"),
        ({"epochs": 10**9}, "epochs is"),
        ({"seed": 2**32}, "seed is"),
        ({"crop": (16, 2**20)}, "a side of crop is 1048576, expected 16 to 16384"),
        ({"scene_size": (2**20, 16)}, "a side of scene_size is"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"ema": float("nan")}, "ema must lie"),
        ({"batch": 2.5}, "batch must be a whole number, not 2.5"),
        ({"normalisation": "frozen"}, "statistics of --init"),
        ({"mix": ("synthetic::1",)}, "leave out --data and --root"),
        ({"mix": ("synthetic::1",), "root": None}, "leave out --data and --root"),
        ({"mix": ("synthetic",), **NO_DATA}, "expected NAME:ROOT:WEIGHT"),
        ({"mix": ("folder::1",), **NO_DATA}, "--mix folder:FOLDER:WEIGHT"),
        ({"validate_count": 5}, "no effect without --validate-every"),
        ({"data": "synthetic"}, "'synthetic' is rendered and has no folder"),
        ({"mix": ("synthetic:.:1",), **NO_DATA}, "'synthetic' is rendered and has no folder"),
        ({"scene_size": (64, 128)}, "scene_size has no effect without data 'synthetic'"),
    ],
)
def test_impossible_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_whole_numbers_of_numpys_are_recorded_as_pythons(config):
    given = replace(config, batch=np.int64(4), crop=(np.int32(32), 64), seed=np.uint8(3))
    assert json.loads(json.dumps(given.to_dict())) == replace(config, batch=4, seed=3).to_dict()


def test_a_crop_too_small_for_batch_normalisation_is_refused_with_what_helps(config):
    tiny = replace(config, crop=(16, 16), micro_batch=1, steps=1)
    with pytest.raises(ValueError, match=r"in crops of \(16, 16\).*--micro-batch"):
        train(tiny)
    train(replace(tiny, micro_batch=2))
    train(replace(tiny, normalisation="group", out=config.out.with_name("group")))
