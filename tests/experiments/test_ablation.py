import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_pairs import made_pair, write_noise_pair
from training.tiny import one_block

from ea_psmnet.__main__ import main
from ea_psmnet.experiments import ablation as module
from ea_psmnet.experiments.ablation import (
    Ablation,
    RunResult,
    Spread,
    ablate,
    ablation_markdown,
    question_variants,
)
from ea_psmnet.experiments.ablation_config import RENDERED, AblationConfig
from ea_psmnet.experiments.networks import parse_variant
from ea_psmnet.experiments.plots import ablation_plot
from ea_psmnet.files import write_image, write_npy
from ea_psmnet.models import features
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_into, load_state, save_model

RNG = np.random.default_rng(0)
VARIANTS = ("baseline", "efficient", "efficient,normalisation=none")


@pytest.fixture(autouse=True)
def shallow_features(monkeypatch):
    monkeypatch.setattr(features, "_stage", one_block)


@pytest.fixture
def pairs(monkeypatch):
    """The rendered test set, without rendering."""
    made = [made_pair(np.full((32, 48), 5.0), str(number)) for number in range(2)]
    monkeypatch.setattr(module, "_rendered", lambda config: made)
    return made


@pytest.fixture
def config(tmp_path):
    return AblationConfig(
        out=tmp_path / "out",
        seeds=(3, 4),
        variants=VARIANTS,
        width=0.125,
        max_disparity=16,
        crop=(32, 48),
        batch=2,
        steps=2,
        data="folder",
        root=write_noise_pair(tmp_path / "pairs" / "a", RNG, (32, 48), 4).parent,
        device="cpu",
    )


class Trainer:
    """Stands in for the training process: writes the weights it would start from."""

    def __init__(self):
        self.runs = []
        self.fails = {}

    def __call__(self, program, arguments, *, stdout, **_):
        words = iter(arguments[1:])
        options, name = {}, ""
        for word in words:
            if word.startswith("--"):
                name = word
            options.setdefault(name, []).append(word)
        options = {name[2:]: values[1:] for name, values in options.items()}
        self.runs.append(options)
        variant = Path(options["network"][0]).parts[-3]
        status, said = self.fails.get(variant, (0, "done"))
        stdout.write(f"step 1\n{said}\n")
        if status == 0:
            network = json.loads(Path(options["network"][0]).read_text())
            torch.manual_seed(int(options["seed"][0]))
            model = build_model(parse_variant("baseline").from_dict(network))
            load_into(model, options["init"][0])
            save_model(Path(options["out"][0]) / "model.safetensors", model)
        return SimpleNamespace(returncode=status)


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(module, "run_program", made)
    return made


def last(ablations):
    return list(ablations)[-1]


# Runs --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_variants_of_a_seed_train_alike_from_the_same_weights(config, pairs, trainer):
    found = last(ablate("normalisation", config))
    assert [(r.variant, r.seed) for r in found.results] == [
        (variant, seed) for seed in (3, 4) for variant in VARIANTS
    ]
    own = {"network", "out"}
    for seed, runs in ((3, trainer.runs[:3]), (4, trainer.runs[3:])):
        shared = [{k: v for k, v in run.items() if k not in own} for run in runs]
        assert shared[0] == shared[1] == shared[2]
        assert shared[0]["seed"] == [str(seed)]
        assert shared[0]["micro-batch"] == shared[0]["batch"] == ["2"]
        assert shared[0]["crop"] == ["32", "48"]
        assert len({run["out"][0] for run in runs}) == 3
    networks = [json.loads(Path(run["network"][0]).read_text()) for run in trainer.runs[:3]]
    assert [n["attention"] for n in networks] == ["none", "efficient", "efficient"]
    assert networks[2]["attention_options"] == {"normalisation": "none"}
    assert {n["width"] for n in networks} == {0.125}
    states = [load_state(Path(r["out"][0]) / "model.safetensors")[1] for r in trainer.runs]
    shared = states[0].keys()
    assert shared < states[1].keys()
    for state in states[1:3]:
        assert all(torch.equal(state[name], states[0][name]) for name in shared)
    convolution = next(name for name in shared if name.endswith("weight"))
    assert not torch.equal(states[3][convolution], states[0][convolution])


@pytest.mark.slow
def test_all_runs_may_start_from_one_checkpoint_but_for_its_attention(
    config, pairs, trainer, tmp_path
):
    first = build_model(parse_variant("efficient", width=0.125, max_disparity=32))
    save_model(tmp_path / "first.safetensors", first)
    config = replace(config, variants=("efficient",), init=tmp_path / "first.safetensors")
    last(ablate("normalisation", config))
    bare = {name for name in first.state_dict() if ".attention." not in name}
    for seed in config.seeds:
        _, state = load_state(config.out / "initial" / f"seed-{seed}.safetensors")
        assert state.keys() == bare
        assert all(torch.equal(state[name], first.state_dict()[name]) for name in bare)


def test_a_checkpoint_that_does_not_fit_is_told_before_anything_is_rendered(config, tmp_path):
    save_model(tmp_path / "wide.safetensors", build_model(parse_variant("baseline", width=0.25)))
    config = replace(config, init=tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="does not fit the network"):
        last(ablate("normalisation", config))
    assert not (config.out / "scenes").exists()


def test_a_missing_dataset_is_told_before_anything_is_rendered(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        last(ablate("normalisation", replace(config, root=tmp_path / "nowhere")))
    assert not config.out.exists()


def test_finished_runs_are_kept_and_more_seeds_added(config, pairs, trainer):
    config = replace(config, variants=VARIANTS[:2])
    first = last(ablate("normalisation", replace(config, seeds=(3,))))
    assert len(trainer.runs) == 2
    more = last(ablate("normalisation", config))
    assert [run["seed"] for run in trainer.runs[2:]] == [["4"]] * 2
    assert more.results[:2] == first.results


def test_a_kept_run_is_measured_on_what_was_added(config, pairs, trainer, tmp_path):
    config = replace(config, variants=("baseline",))
    last(ablate("normalisation", config))
    rng = np.random.default_rng(0)
    for view in ("left", "right"):
        image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        write_image(tmp_path / "real" / "a" / f"{view}.png", image)
    write_npy(tmp_path / "real" / "a" / "disp.npy", np.full((32, 48), 5, np.float32))
    found = last(ablate("normalisation", replace(config, eval_roots=(tmp_path / "real",))))
    assert len(trainer.runs) == 2
    assert found.tests == [RENDERED, "real"]
    # Another folder of this name is another test set.
    shutil.copytree(tmp_path / "real", tmp_path / "other" / "real")
    write_npy(tmp_path / "other" / "real" / "a" / "disp.npy", np.full((32, 48), 9, np.float32))
    other = last(ablate("normalisation", replace(config, eval_roots=(tmp_path / "other/real",))))
    assert len(trainer.runs) == 2
    for before, after in zip(found.results, other.results, strict=True):
        assert before.figures[RENDERED] == after.figures[RENDERED]
        assert before.figures["real"] != after.figures["real"]
    assert last(ablate("normalisation", config)).tests == [RENDERED]


DAMAGE = [
    (lambda text: "", "invalid JSON"),
    (lambda text: text[: len(text) // 2], "invalid JSON"),
    (lambda text: "null", "the content should be an object"),
    (lambda text: "[]", "the content should be an object"),
    (lambda text: text.replace('"seed"', '"sead"'), "seed is missing"),
    (lambda text: text.replace('"seed": 3', '"seed": "3"'), "seed should be a valid integer"),
    (lambda text: text.replace('"seed": 3', '"seed": 4'), "is of baseline, seed 4"),
    (lambda text: text.replace('"EPE": ', '"EPE": "x", "y": '), "figures.rendered.EPE should"),
]


def test_a_damaged_result_is_named(config, pairs, trainer):
    config = replace(config, variants=("baseline",), seeds=(3,))
    last(ablate("normalisation", config))
    path = config.out / "runs" / "baseline" / "seed-3" / "result.json"
    written = path.read_text()
    for change, told in DAMAGE:
        path.write_text(change(written))
        with pytest.raises(ValueError, match="damaged: delete it, and") as caught:
            last(ablate("normalisation", config))
        assert str(caught.value).startswith(f"{path}: {told}")
        assert "\n" not in str(caught.value)


def test_damaged_settings_are_named(config, pairs):
    config.out.mkdir()
    for text in ("", "null", "[]", '{"lr": ', "[" * 9999):
        (config.out / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"out/settings\.json: .*damaged: delete .*out to"):
            last(ablate("normalisation", config))


def test_numbers_that_are_not_finite_are_an_outcome(config, pairs, trainer):
    said = "error: 10 steps in a row were not finite"
    trainer.fails = {"efficient--normalisation-none": (2, said)}
    config = replace(config, variants=(VARIANTS[0], VARIANTS[2]))
    found = last(ablate("normalisation", config))
    assert [r.diverged for r in found.of(VARIANTS[2])] == [said.removeprefix("error: ")] * 2
    assert found.spread(VARIANTS[2], RENDERED, "EPE") == Spread(0, None)
    text = ablation_markdown(found)
    assert "0 of 2" in text
    assert f"{VARIANTS[2]}, seed 3: 10 steps in a row were not finite" in text
    assert len(trainer.runs) == 4
    last(ablate("normalisation", config))
    assert len(trainer.runs) == 4  # it is not tried again


def test_trained_weights_that_are_not_finite_are_an_outcome(config, pairs, monkeypatch):
    def spoiled(program, arguments, **_):
        out = Path(arguments[arguments.index("--out") + 1])
        model = build_model(parse_variant("baseline", width=0.125, max_disparity=16))
        model.features.fuse[2].weight.data[0] = float("nan")
        save_model(out / "model.safetensors", model)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module, "run_program", spoiled)
    found = last(ablate("normalisation", replace(config, variants=("baseline",))))
    assert "NaN or infinity in 'features.fuse.2.weight'" in found.results[0].diverged
    assert found.results[0].figures == {}


def test_another_failure_stops_and_the_run_is_tried_again(config, pairs, trainer):
    trainer.fails = {"efficient": (1, "KeyError: 'gone'")}
    config = replace(config, seeds=(3,))
    with pytest.raises(ChildProcessError, match=r"exit status 1 \(KeyError: 'gone'\)"):
        last(ablate("normalisation", config))
    assert len(trainer.runs) == 2
    trainer.fails = {}
    assert len(last(ablate("normalisation", config)).results) == 3
    assert len(trainer.runs) == 2 + 2


def test_a_folder_of_another_ablation_is_refused(config, pairs, trainer):
    config = replace(config, variants=("baseline",), seeds=(3,))
    last(ablate("normalisation", config))
    with pytest.raises(ValueError, match="has steps 2, not 3"):
        last(ablate("normalisation", replace(config, steps=3)))
    with pytest.raises(ValueError, match="has question normalisation, not heads"):
        last(ablate("heads", config))


def test_the_options_are_those_of_train(config, pairs, tmp_path, monkeypatch):
    """Up to the dataset, which is none: what train says of an unknown option would be another."""
    ended = []

    def run(program, arguments, *, stdout, **_):
        with redirect_stdout(stdout), redirect_stderr(stdout):
            ended.append(main(arguments))
        return SimpleNamespace(returncode=ended[-1])

    monkeypatch.setattr(module, "run_program", run)
    monkeypatch.setattr(module, "build_dataset", lambda *_: None)
    config = replace(config, variants=("efficient",), seeds=(0,), root=tmp_path / "nowhere")
    with pytest.raises(ChildProcessError, match="nowhere: no pairs"):
        last(ablate("normalisation", config))
    assert ended == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, expected 1 to"),
        ({"workers": -1}, "workers is -1, expected 0 to"),
        ({"seeds": ()}, "seeds must be different numbers"),
        ({"seeds": (1, 1)}, "seeds must be different numbers"),
        ({"crop": (30, 48)}, "multiples of 16"),
        ({"lr": 0.0}, "lr must be positive and finite"),
        ({"cross_entropy": -1.0}, "cross entropy must be 0 or more"),
        ({"max_disparity": 64}, "wider than the crop"),
        ({"root": None}, "data 'folder' needs --root"),
    ],
)
def test_impossible_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


@pytest.mark.parametrize("variants", [("magic",), ("efficient,heads=7",), ("hydra", "hydra")])
def test_unknown_variants_are_refused_before_anything_is_written(config, pairs, variants):
    with pytest.raises(ValueError, match=r"unknown variant|heads \(7\)|must differ"):
        last(ablate("mechanism", replace(config, variants=variants)))
    assert not config.out.exists()


# Questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", ["normalisation", "sites", "key-channels", "mechanism", "heads", "positions"]
)
def test_every_question_has_variants_that_are_different_networks(question, config):
    texts = question_variants(question, replace(config, width=0.5))
    networks = [parse_variant(text, width=0.5, max_disparity=32) for text in texts]
    assert len(texts) >= 3
    assert all(a != b for i, a in enumerate(networks) for b in networks[:i])
    for network in networks:
        build_model(network)


def test_key_channels_are_shares_of_the_sites_channels(config):
    at = {"width": 0.5, "variants": ()}
    wide = question_variants("key-channels", replace(config, **at))
    narrow = question_variants("key-channels", replace(config, sites="volume", **at))
    assert [text.rpartition("=")[2] for text in wide] == ["16", "4", "8", "32"]
    assert [text.rpartition("=")[2] for text in narrow] == ["8", "2", "4", "16"]


# Figures -----------------------------------------------------------------------------------------


def some_ablation(config):
    """By hand: a is 1, 2, 6 and b is 2, none, 9; over seeds 0 and 2 b - a is 1 and 3."""
    values = {"a": [1.0, 2.0, 6.0], "b": [2.0, None, 9.0]}
    results = [
        RunResult(variant, seed, None, 1.0, {RENDERED: {"EPE": epe, "bad-1": 50.0, "bad-3": 9.0}})
        for variant, epes in values.items()
        for seed, epe in enumerate(epes)
    ]
    return Ablation("heads", config, ("a", "b"), {"a": 1000, "b": 2000}, results)


def test_deviations_are_of_samples_and_differences_paired(config):
    made = some_ablation(config)
    spreads = (
        (made.spread("a", RENDERED, "EPE"), 3, 3.0, 7**0.5),
        (made.spread("b", RENDERED, "EPE"), 2, 5.5, 24.5**0.5),
        (made.difference("b", RENDERED, "EPE"), 2, 2.0, 2**0.5),
        (replace(made, variants=("b", "a")).difference("a", RENDERED, "EPE"), 2, -2.0, 2**0.5),
    )
    for spread, *figures in spreads:
        assert [spread.count, spread.mean, spread.deviation] == pytest.approx(figures)
    assert Spread.of([4.0]) == Spread(1, 4.0)


def test_the_interval_is_students():
    """Of 1, 2, 6: t with 2 degrees of freedom is 4.303, the mean's standard error sqrt(7 / 3)."""
    reach = 4.303 * (7 / 3) ** 0.5
    assert Spread.of([1.0, 2.0, 6.0]).interval == pytest.approx((3 - reach, 3 + reach))
    # More than ten values are taken for ten.
    assert Spread.of([0.0, 2.0] * 8).interval == pytest.approx(
        (1 - 2.262 * (16 / 15 / 16) ** 0.5, 1 + 2.262 * (16 / 15 / 16) ** 0.5)
    )


def test_eval_roots_of_one_name_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="told apart by the folders' names"):
        replace(config, eval_roots=(tmp_path / "a" / "pairs", tmp_path / "b" / "pairs"))
    with pytest.raises(ValueError, match="'rendered'"):
        replace(config, eval_roots=(tmp_path / RENDERED,))


def test_the_table_says_mean_deviation_and_how_many(config):
    text = ablation_markdown(some_ablation(config))
    a, b = (line for line in text.splitlines() if line.startswith(("| a ", "| b ")))
    assert "3 of 3" in a
    assert "3.000 ± 2.646" in a
    assert "1,000" in a
    assert "2 of 3" in b
    assert "5.500 ± 4.950" in b
    assert "+2.000 ± 1.414" in b
    assert "-10.706 to +14.706" in b
    assert "b, seed 1: its predictions on rendered are not finite" in text
    assert "seed 0" not in text


def test_the_report_is_json_and_a_picture(config):
    made = some_ablation(config)
    values = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert set(values) == {"question", "settings", "runs", "variants"}
    figures = values["variants"][1]["figures"][RENDERED]["EPE"]
    assert figures["difference"]["mean"] == 2.0
    assert figures["spread"]["count"] == 2
    assert ablation_plot(made).std() > 5
    shifted = replace(made, results=[replace(r, figures={}) for r in made.results])
    assert ablation_plot(shifted).std() > 0


def test_corner_alignment_comes_with_the_initial_weights(config, tmp_path):
    old = replace(module.base_network(config), align_corners=True)
    save_model(tmp_path / "old.safetensors", build_model(old))
    started = replace(config, init=tmp_path / "old.safetensors")
    assert module.base_network(started) == old
    assert load_state(module.shared_weights(started, 0))[0].align_corners
