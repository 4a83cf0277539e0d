"""`scripts/launch`, and runs of several processes under it."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import alive, write_programs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ea_psmnet.training import processes
from ea_psmnet.training.checkpoint import load_newest
from ea_psmnet.training.loop import train

SCRIPTS = Path(__file__).parents[2] / "scripts"
TELL = """#!/usr/bin/env bash
echo "$@"
"""
SRUN = """#!/usr/bin/env bash
echo "srun $1 $2 $3" >> calls
trap : TERM  # the real one would kill the step, without waiting for what it saves
shift 3
bash -c 'echo $$ > step; exec "$@"' - "$@"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> calls
kill -TERM "$(cat step)"
"""
SAVING = """#!/usr/bin/env bash
trap 'sleep 0.2; touch saved; exit {}' TERM
echo up
while true; do sleep 0.05; done
"""


@pytest.fixture
def clone(tmp_path):
    """A clone whose Python tells what it was started with, on a machine with two GPUs."""
    programs = {
        ".venv/bin/python": TELL,
        "scripts/environment": "#!/usr/bin/env bash\n",
        "scripts/launch": (SCRIPTS / "launch").read_text(),
        "scripts/launch-slurm": (SCRIPTS / "launch-slurm").read_text(),
        "bin/nvidia-smi": "#!/usr/bin/env bash\necho one; echo two\n",
        "bin/srun": SRUN,
        "bin/scancel": SCANCEL,
        "bin/scontrol": '#!/usr/bin/env bash\necho "scontrol $*" >> calls; echo n7; echo n8\n',
    }
    write_programs(tmp_path, programs)
    return tmp_path


def launch(clone, name="launch", **settings):
    return subprocess.Popen(
        [clone / "scripts" / name, "train", "--out", "a b"],
        cwd="/",
        env={"PATH": f"{clone / 'bin'}:{os.environ['PATH']}"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def test_one_machine_has_a_worker_a_gpu(clone):
    expected = (
        "-m ea_psmnet.training.launch --standalone --nproc-per-node {} --max-restarts 3 "
        "--monitor-interval 1 -m ea_psmnet train --out a b"
    )
    assert told(launch(clone)) == expected.format(2)
    assert told(launch(clone, PROCESSES="5")) == expected.format(5)
    (clone / "bin" / "nvidia-smi").write_text("#!/usr/bin/env bash\nexit 9\n")
    assert told(launch(clone)) == expected.format(1)


def test_several_machines_meet_at_one_address(clone):
    started = told(launch(clone, NODES="2", RENDEZVOUS="n7:29400", RESTARTS="0"))
    meeting = "--rdzv-backend c10d --rdzv-endpoint n7:29400 --rdzv-id ea-psmnet"
    assert f"--nnodes 2 {meeting} --nproc-per-node 2 --max-restarts 0" in started
    lost = launch(clone, NODES="2")
    assert "RENDEZVOUS: HOST:PORT of one of the machines" in lost.communicate(timeout=60)[1]
    assert lost.returncode == 1


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "--root", "x", "-h"]])
def test_a_commands_help_starts_no_processes(clone, arguments):
    ended = subprocess.run(
        [clone / "scripts" / "launch", *arguments], capture_output=True, text=True
    )
    assert ended.stdout.strip() == " ".join(["-m", "ea_psmnet", *arguments])


SCRIPT_NAMES = sorted(path.name for path in SCRIPTS.iterdir() if path.is_file())


@pytest.mark.parametrize("name", SCRIPT_NAMES)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_script_tells_what_it_does_and_does_nothing(tmp_path, name, option):
    """In a folder without anything that it could start."""
    write_programs(tmp_path, {f"scripts/{name}": (SCRIPTS / name).read_text()})
    ended = subprocess.run([tmp_path / "scripts" / name, option], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout) > 30
    assert not any(line.startswith(("#", "set ")) for line in ended.stdout.splitlines())


@pytest.mark.parametrize("name", ["train_release", "demo"])
def test_an_option_is_not_taken_for_a_name(name):
    ended = subprocess.run([SCRIPTS / name, "--out"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.search("error: un.*--out", ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--root nowhere --out run", "--lr -1 --root . --out run"])
def test_bad_input_ends_the_launch_at_once_with_one_line(tmp_path, arguments):
    """Without starting again, and though both processes meet it."""
    command = (
        "-m ea_psmnet.training.launch --standalone --nproc-per-node 2 --max-restarts 3 "
        f"--monitor-interval 0.2 -m ea_psmnet train {arguments} --device cpu"
    )
    ended = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def job(clone):
    """What SLURM sets."""
    facts = {"SUBMIT_DIR": clone, "JOB_NUM_NODES": 2, "JOB_NODELIST": "n[7-8]", "JOB_ID": 60123}
    facts["CPUS_PER_TASK"] = 32
    return {f"SLURM_{name}": str(value) for name, value in facts.items()}


@pytest.fixture
def saving_job(clone, job):
    """A job whose run takes its time to save and then ends with a code."""

    def start(code):
        (clone / ".venv/bin/python").write_text(SAVING.format(code))
        process = launch(clone, "launch-slurm", **job)
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    step = int((clone / "step").read_text())
    if alive(step):
        os.kill(step, signal.SIGKILL)


def test_a_slurm_job_meets_at_its_first_node(clone, job):
    started = told(launch(clone, "launch-slurm", **job))
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint n7:20123 --rdzv-id 60123" in started
    hosts, step = (clone / "calls").read_text().splitlines()
    assert hosts == "scontrol show hostnames n[7-8]"
    assert step == "srun --kill-on-bad-exit=1 --cpus-per-task 32"


def test_a_slurm_job_near_its_limit_saves_and_is_queued_again(clone, saving_job):
    process = saving_job(1)
    process.send_signal(signal.SIGUSR1)
    told(process)
    assert (clone / "saved").exists()
    calls = (clone / "calls").read_text().splitlines()
    assert calls[-2:] == ["scancel --signal=TERM 60123", "scontrol requeue 60123"]


def test_a_slurm_job_that_ends_at_its_limit_is_not_queued_again(clone, saving_job):
    process = saving_job(0)
    process.send_signal(signal.SIGUSR1)
    told(process)
    assert "requeue" not in (clone / "calls").read_text()


def test_a_slurm_job_that_is_cancelled_is_not_queued_again(clone, saving_job):
    """SLURM signals the script as well as the run."""
    process = saving_job(1)
    process.terminate()
    os.kill(int((clone / "step").read_text()), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "requeue" not in (clone / "calls").read_text()


def test_a_slurm_job_that_failed_says_so(clone, job):
    (clone / ".venv/bin/python").write_text("#!/usr/bin/env bash\nexit 2\n")
    process = launch(clone, "launch-slurm", **job)
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert "requeue" not in (clone / "calls").read_text()


@pytest.mark.parametrize(
    ("shared", "restarts", "warns"),
    [("True", "3", True), ("True", "0", False), ("False", "3", False)],
)
def test_restarts_that_may_hang_are_warned_of(monkeypatch, capsys, shared, restarts, warns):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    processes.join_processes("cpu")
    assert ("may hang" in capsys.readouterr().err) == warns


# Several processes, with gloo ---------------------------------------------------------------------


ROOT = Path(__file__).parents[2]


def torchrun(config, deaths):
    """Two processes, of which the second dies at each of some starts, and is started again."""
    command = (
        f"-m ea_psmnet.training.launch --standalone --nproc-per-node 2 --max-restarts 2 "
        f"--monitor-interval 0.5 -m training.dying_run {deaths} "
        f"train --data folder --root {config.root} --out {config.out} --preset tiny --batch 4 "
        "--max-disparity 16 --crop 32 64 --steps 3 --save-every 1 --precision fp32 --device cpu "
        f"--workers 1 --micro-batch 1 --normalisation sync --lr {config.lr} --no-memory-check "
        f"--validate-every 3 --validate-root {config.root} --validate-count 3"
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
    """Although one fails in step 2, loaders and all, and is killed when it begins again.

    Torchrun tells both and starts them again.

    Loss and gradients agree to rounding: losses to 0.5 %, as pooled maps of few pixels
    amplify it, while a small rate keeps Adam,
    whose first steps go by the gradients' signs alone, from making rounding into differences.
    """
    one = replace(
        config, batch=4, micro_batch=2, steps=3, lr=1e-6, validate_every=3, validate_count=3
    )
    one = replace(one, validate_root=config.root)
    train(one)
    two = replace(one, out=tmp_path / "two")
    ended = torchrun(two, "1:raise,start:kill")
    assert ended.returncode == 0, ended.stderr
    assert "[rank1]: RuntimeError: made to fail" in ended.stderr
    assert "failed (exitcode: -9) local_rank: 1" in ended.stderr
    assert "a worker that torchrun restarts may hang" not in ended.stderr
    losses = [logged(run.out, "train/loss") for run in (one, two)]
    assert losses[0].keys() == losses[1].keys() == {1, 2, 3}
    for step in (1, 2, 3):
        assert losses[1][step] == pytest.approx(losses[0][step], rel=5e-3)
    states = [load_newest(run.out / "checkpoints") for run in (one, two)]
    for index, state in states[0]["optimizer"]["state"].items():
        ours, theirs = state["exp_avg"], states[1]["optimizer"]["state"][index]["exp_avg"]
        assert (ours - theirs).norm() <= 0.1 * ours.norm() + 1e-4
    bests = [json.loads((run.out / "best.json").read_text()) for run in (one, two)]
    assert bests[0]["images"] == bests[1]["images"] == 3
    assert bests[1]["EPE"] == pytest.approx(bests[0]["EPE"], rel=1e-2)
