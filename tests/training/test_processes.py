"""Runs of several processes, under torchrun on this machine, with gloo."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ea_psmnet.training.checkpoint import load_newest
from ea_psmnet.training.loop import train

ROOT = Path(__file__).parents[2]


def torchrun(config, deaths):
    """Two processes, of which the second dies at each of some starts, and is started again."""
    command = (
        f"-m ea_psmnet.training.launch --standalone --nproc-per-node 2 --max-restarts 2 "
        f"--monitor-interval 0.5 -m training.dying_run {deaths} "
        f"train --data folder --root {config.root} --out {config.out} --preset tiny --batch 4 "
        "--max-disparity 16 --crop 32 64 --steps 5 --save-every 2 --precision fp32 --device cpu "
        f"--workers 1 --micro-batch 1 --normalisation sync --lr {config.lr} --no-memory-check "
        f"--validate-every 5 --validate-root {config.root} --validate-count 5"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )


def logged(folder, name):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.slow
def test_two_processes_compute_what_one_with_double_batch_does(config, tmp_path):
    """Although one fails and another is killed, loaders and all: torchrun tells and restarts them.

    Loss and gradients agree to rounding: losses to 0.5 %, as pooled maps of few pixels
    amplify it, while a small rate keeps Adam,
    whose first steps go by the gradients' signs alone, from making rounding into differences.
    """
    one = replace(
        config, batch=4, micro_batch=2, steps=5, lr=1e-6, validate_every=5, validate_count=5
    )
    one = replace(one, validate_root=config.root)
    train(one)
    two = replace(one, out=tmp_path / "two")
    ended = torchrun(two, "2:raise,2:kill")
    assert ended.returncode == 0, ended.stderr
    assert "[rank1]: RuntimeError: made to fail" in ended.stderr
    assert "failed (exitcode: -9) local_rank: 1" in ended.stderr
    assert "a worker that torchrun restarts may hang" not in ended.stderr
    losses = [logged(run.out, "train/loss") for run in (one, two)]
    assert losses[0].keys() == losses[1].keys() == set(range(1, 6))
    for step in range(1, 6):
        assert losses[1][step] == pytest.approx(losses[0][step], rel=5e-3)
    states = [load_newest(run.out / "checkpoints") for run in (one, two)]
    for index, state in states[0]["optimizer"]["state"].items():
        ours, theirs = state["exp_avg"], states[1]["optimizer"]["state"][index]["exp_avg"]
        assert (ours - theirs).norm() <= 0.1 * ours.norm() + 1e-4
    bests = [json.loads((run.out / "best.json").read_text()) for run in (one, two)]
    assert bests[0]["images"] == bests[1]["images"] == 5
    assert bests[1]["EPE"] == pytest.approx(bests[0]["EPE"], rel=1e-2)
