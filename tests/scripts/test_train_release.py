"""Weights made ready to ship, and the recipe that trains them."""

import hashlib
import os
import runpy
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from command_line import ROOT, write_programs
from training.tiny import TINY

from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_into, load_model, save_model
from ea_psmnet.training.config import TrainingConfig

SCRIPT = ROOT / "scripts" / "train_release"
release = runpy.run_path(str(SCRIPT))["release"]


def test_released_weights_are_the_trained_ones_in_half_precision(tmp_path):
    network = build_model(TINY)
    trained, shipped = tmp_path / "trained.safetensors", tmp_path / "shipped.safetensors"
    save_model(trained, network)
    digest = release(trained, shipped, peak_reach=2)
    assert digest == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert shipped.stat().st_size < 0.6 * trained.stat().st_size
    assert load_model(shipped).config.peak_reach == 2
    assert load_model(shipped, peak_reach=0).config == load_model(trained).config
    loaded = load_model(shipped).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_released_weights_may_be_the_mean_of_two_runs(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("trained", "start", "shipped")]
    networks = [build_model(TINY) for _ in range(2)]
    for path, network in zip(paths, networks, strict=False):
        save_model(path, network)
    release(paths[0], paths[2], other=paths[1], share=0.25)
    found = load_model(paths[2]).state_dict()
    (ours, start) = (network.state_dict() for network in networks)
    for name in ("features.stem.0.0.weight", "aggregation.stem.0.1.running_var"):
        expected = 0.75 * ours[name] + 0.25 * start[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_the_mean_of_different_networks_is_refused(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("trained", "start", "shipped")]
    for path, disparities in zip(paths, (48, 96), strict=False):
        save_model(path, build_model(replace(TINY, max_disparity=disparities)))
    with pytest.raises(
        ValueError, match=r"start\.safetensors: cannot be averaged: its max_disparity differs"
    ):
        release(paths[0], paths[2], other=paths[1])
    assert not paths[2].exists()


def test_the_start_may_be_a_narrower_network(tmp_path):
    start, trained = (tmp_path / f"{name}.safetensors" for name in ("start", "trained"))
    save_model(start, build_model(TINY))
    wide = build_model(replace(TINY, width=2 * TINY.width))
    load_into(wide, start)
    save_model(trained, wide)
    release(trained, tmp_path / "shipped.safetensors", other=start, share=0.5)
    found = load_model(tmp_path / "shipped.safetensors").state_dict()
    for name, tensor in wide.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.fixture
def recipe(tmp_path):
    """Calls of Python that the script makes: `recipe(*arguments, **settings)`."""
    programs = {
        "scripts/train_release": SCRIPT.read_text(),
        "scripts/environment": "#!/usr/bin/env bash\n",
        ".venv/bin/python": '#!/usr/bin/env bash\nprintf "%q " "$@" >> calls; echo >> calls\n',
    }
    write_programs(tmp_path, programs)

    def calls(*arguments, **settings):
        command = [tmp_path / "scripts" / "train_release", *arguments]
        subprocess.run(
            command,
            env={"PATH": os.environ["PATH"]} | settings,
            check=True,
            timeout=60,
            stderr=subprocess.PIPE,
            text=True,
        )
        return [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return calls


def stages(calls):
    """The runs among the calls, with the options read as the program reads them."""
    runs = [call[call.index("train") + 1 :] for call in calls if "train" in call]
    return [tyro.cli(TrainingConfig, args=run, config=(tyro.conf.OmitArgPrefixes,)) for run in runs]


def test_the_recipe_is_that_of_the_record(recipe):
    """Each stage starts from the one before; the last two have the cross-entropy, fixed scenes."""
    calls = recipe("ea-psmnet-small")
    runs = stages(calls)
    assert [run.steps for run in runs] == [900, 1570, 1180, 1220, 1000]
    assert [run.cross_entropy for run in runs] == [0, 0, 0, 0.3, 0.3]
    assert [run.augment for run in runs] == ["none", "none", "robust", "robust", "robust"]
    assert [run.ema for run in runs] == [None, None, 0.98, 0.98, 0.98]
    assert [run.init for run in runs] == [
        None,
        *(run.out / "model.safetensors" for run in runs[:-1]),
    ]
    folder = runs[0].out.parent
    for run in runs[-2:]:
        assert [source.root for source in run.sources()] == [folder / "large", folder / "small"]
    rendered = [call for call in calls if "render" in call]
    assert [call[call.index("--out") + 1] for call in rendered] == [
        f"{folder}/large",
        f"{folder}/small",
    ]
    last, start = (f"{run.out}/model.safetensors" for run in (runs[-1], runs[-2]))
    shipped = "checkpoints/ea-psmnet-small.safetensors"
    assert calls[-1][2:] == [last, shipped, "--other", start, "--share", "0.4"]


def test_light_networks_have_a_recipe_of_their_own(recipe, tmp_path):
    calls = recipe()
    runs = stages(calls)
    assert {run.preset for run in runs} == {"ea-light"}
    first, second, third, fourth, fifth, sixth, last = (
        run.out / "model.safetensors" for run in runs
    )
    means = [path.with_name("mean.safetensors") for path in (third, fourth, sixth)]
    starts = [None, first, second, means[0], means[1], fifth, means[2]]
    assert [run.init for run in runs] == starts
    assert [(run.steps, run.crop, len(run.mix), run.lr) for run in runs] == [
        (2200, (192, 384), 2, 1e-3),
        (2100, (192, 384), 2, 1e-3),
        (1330, (256, 512), 4, 1e-3),
        (1000, (320, 640), 2, 8e-4),
        (2110, (320, 640), 2, 7e-4),
        (1180, (320, 640), 2, 7e-4),
        (950, (320, 640), 2, 4e-4),
    ]
    assert [run.likelihood for run in runs] == [0, 0, 0, 0, 0.3, 0.3, 0.3]
    assert [run.ema for run in runs] == [0.995] * 6 + [0.998]
    rendered = [call[5] for call in calls if "render" in call]
    assert rendered == ["1000", "500", "900", "1200", "500", "545", "700", "500", "800", "400"]
    shipped = Path("checkpoints/ea-light.safetensors")
    expected = [
        [third, means[0], "--other", second, "--share", "0.35"],
        [fourth, means[1], "--other", means[0], "--share", "0.5"],
        [sixth, means[2], "--other", fifth, "--share", "0.7"],
        [last, shipped, "--other", means[2], "--share", "0.5"],
    ]
    shares = [call[2:] for call in calls if "--ship" in call]
    assert shares == [list(map(str, call)) for call in expected]
    given = tmp_path / "given.safetensors"
    given.touch()
    for preset in ("light", "nonlocal-light"):
        (tmp_path / "calls").unlink(missing_ok=True)
        (on,) = stages(recipe(preset, INIT=str(given)))
        assert (on.preset, on.init, on.steps) == (preset, given, 950)


def test_preset_folder_length_and_photographs_may_be_given(recipe):
    calls = recipe("psmnet-small", "a b", LENGTH="3", TEXTURES="my photos", PROCESSES="2")
    runs = stages(calls)
    assert {run.preset for run in runs} == {"psmnet-small"}
    assert {run.out.parent for run in runs} == {Path("a b").resolve()}
    assert [run.steps for run in runs] == [2700, 4710, 3540, 3660, 3000]
    assert sum("my photos" in call for call in calls) == 1
    assert all(call[4] == "2" for call in calls if "train" in call)
    assert calls[-1][3] == "checkpoints/psmnet-small.safetensors"


def test_the_last_stage_may_start_from_given_weights(recipe, tmp_path):
    given = tmp_path / "half width.safetensors"
    given.touch()
    calls = recipe("ea-psmnet", INIT=str(given))
    (run,) = stages(calls)
    assert (run.preset, run.init, run.steps) == ("ea-psmnet", given, 1000)
    assert calls[-1][4:6] == ["--other", str(given)]


def test_the_last_stage_may_start_from_bundled_weights(recipe, tmp_path):
    bundled = tmp_path / "checkpoints" / "ea-psmnet-small.safetensors"
    bundled.parent.mkdir()
    bundled.touch()
    (run,) = stages(recipe("ea-psmnet", INIT="ea-psmnet-small"))
    assert tmp_path / run.init == bundled


def test_weights_that_the_result_would_replace_are_no_start(recipe, tmp_path):
    bundled = tmp_path / "checkpoints" / "ea-light.safetensors"
    bundled.parent.mkdir()
    bundled.touch()
    with pytest.raises(subprocess.CalledProcessError) as ended:
        recipe("ea-light", INIT="ea-light")
    assert "would be overwritten by the result" in ended.value.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peak-reach", "0"], "--other and --peak-reach need --ship"),
        (["--ship", "a", "b", "--share", "0.4"], "--share needs --other"),
        (["--ship", "a", "b", "--share", "40"], "40 is not between 0 and 1"),
    ],
)
def test_options_that_would_be_ignored_or_wrong_are_refused(recipe, tmp_path, options, message):
    with pytest.raises(subprocess.CalledProcessError) as ended:
        recipe(*options)
    assert ended.value.returncode == 2
    assert message in ended.value.stderr
    assert not (tmp_path / "calls").exists()


def test_sigterm_ends_the_stage_and_then_the_script(tmp_path):
    stage = "#!/usr/bin/env bash\ntrap 'echo ended > ended; exit 143' TERM\ntouch begun\n"
    programs = {
        "scripts/train_release": SCRIPT.read_text(),
        "scripts/environment": "#!/usr/bin/env bash\n",
        ".venv/bin/python": stage + "for _ in {1..600}; do sleep 0.1; done\n",
    }
    write_programs(tmp_path, programs)
    with subprocess.Popen([tmp_path / "scripts" / "train_release"]) as process:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LENGTH": "0.5"}, "error: LENGTH is a whole number of 1 or more, not '0.5'\n"),
        ({"LENGTH": "0"}, "error: LENGTH is a whole number of 1 or more, not '0'\n"),
        ({"INIT": "missing.tar"}, "error: INIT: missing.tar: neither a file nor bundled weights\n"),
    ],
)
def test_impossible_settings_are_one_line(recipe, tmp_path, settings, message):
    with pytest.raises(subprocess.CalledProcessError) as ended:
        recipe(**settings)
    assert (ended.value.returncode, ended.value.stderr) == (2, message)
    assert not (tmp_path / "calls").exists()
