"""`compare` as a user runs it."""

import json
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ea_psmnet.__main__ import main
from ea_psmnet.experiments import compare as comparison
from ea_psmnet.files import write_image, write_npy
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import save_model

MAP_BYTES = (12 * 16 * 32) ** 2 * 4
"""Of non-local attention at 1/8 of 128 x 256 with 96 disparities: 144 MiB."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, build_model(PSMNetConfig(max_disparity=96, width=0.25)))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A small pair and one that non-local attention cannot take."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name, size in (("a", (32, 96)), ("b", (128, 256))):
        for view in ("left", "right"):
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            write_image(root / name / f"{view}.png", image)
        write_npy(root / name / "disp.npy", np.full(size, 8, np.float32))
    return root


@pytest.fixture
def compare(monkeypatch, capsys):
    """Run `compare`; returns what it prints. Trials are processes of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # every thread takes some of a small budget

    def run(*arguments):
        assert main(["compare", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_running_out_of_memory_is_an_event_with_bytes_and_a_module(
    compare, checkpoint, pairs, tmp_path
):
    told = compare(
        *("--variants", "non-local", "--checkpoints", checkpoint, "--root", pairs),
        *("--width", 0.25, "--max-disparity", 96, "--budget", "140MiB"),
        *("--device", "cpu", "--out", tmp_path),
    )
    fits, starves = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert fits["outcome"]["end"] == "fits"
    assert fits["outcome"]["figures"]["EPE"] > 0
    assert 0 < fits["outcome"]["peak"] < 140 * 2**20
    outcome = starves["outcome"]
    assert outcome["end"] == "out of memory"
    assert outcome["requested"] == MAP_BYTES
    assert outcome["shape"] == [1, 128, 256]
    assert outcome["module"].startswith("aggregation.hourglasses.0.attention.encoder")
    assert starves["forecast"]["sites"]["hourglass1.encoder"]["map_bytes"] == MAP_BYTES
    assert f"{MAP_BYTES:,} bytes" in told
    assert told == (tmp_path / "comparison.md").read_text()
    assert not (tmp_path / "comparison.png").exists()  # a dataset's memory is one point


@pytest.mark.slow
def test_a_training_step_starves_where_prediction_fits(compare, tmp_path):
    """Prediction of 96 x 192 takes 15 to 45 MiB, a step that keeps all activations over 200."""
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "thesis.txt").touch()  # a user's
    told = compare(
        *("--variants", "baseline", "--sizes", "96x192", "--width", 0.5, "--repeats", 1),
        *("--max-disparity", 96, "--budget", "100MiB", "--out", tmp_path),
        *("--device", "cpu", "--precision", "exact"),
    )
    fits, starves = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert (fits["trial"]["work"], fits["outcome"]["end"]) == ("inference", "fits")
    assert (starves["trial"]["work"], starves["outcome"]["end"]) == ("training", "out of memory")
    assert starves["outcome"]["requested"] > 0
    assert "glibc told to keep" in told
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants magic", "unknown variant 'magic'"),
        ("--presets magic", "unknown preset 'magic'"),
        ("--checkpoints nowhere.safetensors", "no such checkpoint"),
        ("--variants efficient --root nowhere", "nowhere: no such file or folder"),
        ("--variants efficient,heads=3", "must be divisible by heads (3)"),
        ("--variants efficient --budget GTX", "or the name of a GPU: GTX 1080 Ti"),
        ("--variants efficient --sizes 100", "'100' is not a size: give height and width"),
        ("--variants efficient --repeats 0", "repeats is 0, expected 1 to"),
        ("--variants efficient --timeout nan", "timeout is nan, expected 1 to"),
        ("--variants efficient --timeout 1e300", "timeout is 1e+300, expected 1 to"),
        ("--variants efficient --batches 1000000000", "a batch is 1000000000, expected 1 to"),
        ("--variants efficient --sizes 16x1048576", "is 1048576, expected 16 to 16384"),
        ("--variants efficient --sites attic", "unknown attention site 'attic'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a trial was started"))
    assert main(["compare", *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert message in error


def test_the_default_is_small_and_told_before_it_runs(pairs, capsys, monkeypatch):
    """At a speed of 10^12 operations a second; a dataset's work is that of all its pairs."""
    seen = []

    def stopped(trials, *_, **__):
        seen.extend(trials)
        raise ValueError("enough")

    monkeypatch.setattr(comparison, "compare", stopped)
    monkeypatch.setattr(comparison, "_speed", lambda trial: 1e12)
    monkeypatch.setattr(comparison, "_START_S", 600.0)
    assert main(["compare"]) == 2
    assert [trial.label for trial in seen] == [
        "baseline",
        "efficient@encoder",
        "non-local@encoder",
    ] * 2
    assert {trial.shape for trial in seen} == {(1, 256, 512)}
    told = capsys.readouterr().err
    assert re.match(r"6 trials of 3 networks: about 6\d min at most", told)
    few = ["--variants", "baseline", "--width", "0.25", "--max-disparity", "96"]
    assert main(["compare", *few, "--root", str(pairs)]) == 2
    assert capsys.readouterr().err.startswith("1 trials of 1 networks: about 10 min at most")


def test_the_speed_that_an_estimate_is_made_with_is_measured(monkeypatch):
    trial = SimpleNamespace(device="cpu", precision="exact")
    assert 1e8 < comparison._speed(trial) < 1e14
