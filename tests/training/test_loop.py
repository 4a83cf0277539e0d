"""The training loop."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from models.original_psmnet import OriginalState, psmnet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._subclasses import FakeTensorMode
from training.tiny import TINY, write_pairs

from ea_psmnet.files import write_json
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model, save_model
from ea_psmnet.training import logs, loop
from ea_psmnet.training import network as network_module
from ea_psmnet.training.checkpoint import load_newest
from ea_psmnet.training.logs import read_metrics
from ea_psmnet.training.loop import train
from ea_psmnet.training.network import initial_network, network_config
from ea_psmnet.training.step import FiniteGuard


def weights(path):
    return safetensors.torch.load_file(path)


def raw_weights(config):
    return load_newest(config.out / "checkpoints")["model"]


def step_records(config):
    return [r for r in read_metrics(config.out / "metrics.jsonl") if r["kind"] == "step"]


def gradients_of_first_step(config, monkeypatch, **changes):
    kept = []

    def keep(self, *_):
        kept.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    out = config.out.with_name("-".join(map(str, ["run", *changes.values()])))
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", keep)
        train(replace(config, out=out, steps=1, **changes))
    return kept


@pytest.fixture
def fixed(config, tmp_path):
    """Statistics that do not depend on how a batch is cut."""
    torch.manual_seed(0)
    save_model(tmp_path / "start.safetensors", build_model(replace(TINY, max_disparity=16)))
    return replace(config, init=tmp_path / "start.safetensors", normalisation="frozen")


def test_accumulated_micro_batches_are_one_batch(fixed, monkeypatch, pairs):
    """Also where samples differ in their numbers of known pixels."""
    fixed = replace(fixed, cross_entropy=0.5)
    sparse = np.full((36, 70), np.nan, np.float32)
    sparse[:, 40:50] = 3
    np.save(pairs / "0" / "disp.npy", sparse)
    whole = gradients_of_first_step(fixed, monkeypatch, batch=6, micro_batch=6)
    parts = gradients_of_first_step(fixed, monkeypatch, batch=6, micro_batch=2)
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()


def test_checkpointing_and_layout_change_no_gradient(config, monkeypatch):
    plain = gradients_of_first_step(config, monkeypatch, checkpointing=False)
    again = gradients_of_first_step(config, monkeypatch, checkpointing=True)
    monkeypatch.setattr(network_module, "to_channels_last", lambda network: None)
    rows = gradients_of_first_step(config, monkeypatch, seed=0)
    for a, b, c in zip(plain, again, rows, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-7
        assert (a - c).norm() <= 1e-2 * a.norm() + 1e-6


def test_a_cross_entropy_adds_to_the_loss_and_its_gradient(config):
    """The loss told of a step holds it; outputs' own losses and the EPE do not."""
    plain, more = (
        replace(config, steps=2, out=config.out.with_name(f"factor-{factor}"), cross_entropy=factor)
        for factor in (0.0, 0.5)
    )
    for run in (plain, more):
        train(run)
    (first, then, *_), (other, after, *_) = (step_records(run) for run in (plain, more))
    assert other["loss"] > first["loss"] + 0.5
    assert after["epe"] != pytest.approx(then["epe"], rel=1e-4)
    for name in ("epe", "loss_1", "loss_2", "loss_3"):
        assert other[name] == pytest.approx(first[name], rel=1e-5)


def test_a_likelihood_trains_the_weights_of_a_learned_head(config, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="this one's head is trilinear"):
        train(replace(config, likelihood=0.5))
    assert not config.out.exists()
    write_json(tmp_path / "learned.json", replace(TINY, head="learned").to_dict())
    config = replace(config, network=tmp_path / "learned.json")
    plain, more = (
        gradients_of_first_step(config, monkeypatch, likelihood=factor) for factor in (0.0, 0.5)
    )
    changed = [(a - b).norm() > 0.1 * a.norm() for a, b in zip(plain, more, strict=True)]
    assert any(changed)


def test_clipping_limits_the_gradient_of_the_whole_batch(config, monkeypatch):
    def norm(gradients):
        return sum(g.square().sum() for g in gradients).sqrt().item()

    free = norm(gradients_of_first_step(config, monkeypatch, batch=4))
    assert free > 0.5
    clipped = norm(gradients_of_first_step(config, monkeypatch, batch=4, clip=0.5))
    assert clipped == pytest.approx(0.5, rel=1e-3)


def test_the_optimiser_is_the_papers(config, monkeypatch):
    made = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])
    train(replace(config, steps=1))
    assert made[0].defaults["betas"] == (0.9, 0.999)
    assert made[0].defaults["weight_decay"] == 0


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_it(config):
    train(replace(config, steps=25, save_every=25, batch=6, micro_batch=6, lr=5e-3))
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    reported = {"epe", "lr", "gradient_norm", "samples_per_second", "waiting", "memory"}
    assert {f"train/{name}" for name in reported} <= set(events.Tags()["scalars"])
    assert all(0 <= event.value <= 1 for event in events.Scalars("train/waiting"))
    assert all(event.value > 0 for event in events.Scalars("train/memory"))


def test_the_rate_of_the_schedule_reaches_the_optimiser(config):
    train(replace(config, schedule="step", milestones=(0.5,), decay=0.1, steps=4))
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    rates = [event.value for event in events.Scalars("train/lr")]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-4, 2e-4])
    state = load_newest(config.out / "checkpoints")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4)


def test_bf16_trains(config, tiny_preset):
    trained = load_model(train(replace(config, precision="bf16", steps=2, max_disparity=48)))
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert trained.config == replace(tiny_preset, max_disparity=48)


@pytest.mark.parametrize("max_disparity", [16, 32])
def test_bf16_is_refused_where_the_processors_gradient_is_broken(config, max_disparity):
    with pytest.raises(ValueError, match="take 48 or more"):
        train(replace(config, precision="bf16", max_disparity=max_disparity))
    train(replace(config, precision="auto", max_disparity=max_disparity, steps=1))


def test_bf16_gradients_are_close_to_float32s(config, monkeypatch):
    """At the depths that are allowed: 48 / 16 = 3 is the smallest."""
    config = replace(config, max_disparity=48, batch=4)
    norms = []
    for precision in ("fp32", "bf16"):
        gradients = gradients_of_first_step(config, monkeypatch, precision=precision)
        assert all(torch.isfinite(g).all() for g in gradients)
        norms.append(sum(g.square().sum() for g in gradients).sqrt())
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_fp16_lowers_its_loss_scale_until_gradients_fit(config, monkeypatch):
    """Overflows of the first guess are no faults: they are neither counted nor end the run."""
    run = replace(config, precision="fp16", max_disparity=48, steps=8, save_every=8)
    monkeypatch.setattr(FiniteGuard, "LIMIT", 1)
    start = {name: p.detach().clone() for name, p in start_of(run).named_parameters()}
    trained = load_model(train(run))
    state = load_newest(run.out / "checkpoints")
    assert 1 <= state["scaler"]["scale"] < 2**16
    assert state["guard"]["skipped"] == 0
    moved = {name: (p - start[name]).abs().max() for name, p in trained.named_parameters()}
    assert all(torch.isfinite(m) for m in moved.values())
    # Adam's steps are at most the rate each, and the gradients it saw were unscaled.
    assert 1e-3 < max(moved.values()) <= 8 * 2e-3 * 1.1


def start_of(config):
    torch.manual_seed(config.seed)
    return build_model(replace(TINY, max_disparity=config.max_disparity))


class Compiled(torch.nn.Module):
    """Stands in for torch.compile, which takes many seconds."""

    calls = 0

    def __init__(self, network, dynamic):
        assert dynamic is False
        super().__init__()
        self._orig_mod = network

    def forward(self, *images):
        Compiled.calls += 1
        return self._orig_mod(*images)


def test_compiling_changes_nothing_that_is_saved(config, monkeypatch):
    monkeypatch.setattr(torch, "compile", Compiled)
    plain = weights(train(replace(config, steps=2, out=config.out.with_name("plain"))))
    assert Compiled.calls == 0
    compiled = weights(train(replace(config, steps=2, compile=True)))
    assert Compiled.calls == 2
    assert all(torch.equal(plain[name], compiled[name]) for name in plain)
    assert plain.keys() == compiled.keys()


def test_a_run_starts_from_other_weights_and_new_attention_is_the_identity(config, tmp_path):
    plain = build_model(PSMNetConfig(width=0.25, max_disparity=16))
    save_model(tmp_path / "plain.safetensors", plain)
    first = train(replace(config, init=tmp_path / "plain.safetensors", steps=1, lr=1e-9))
    trained = weights(first)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=1e-7)


def numbers_for(parameter):
    if parameter.dim() < 2:
        return (0.5 + torch.rand(parameter.shape)).to(parameter.dtype)
    return torch.randn(parameter.shape) * (2 / parameter[0].numel()) ** 0.5


def test_an_original_psmnet_starts_an_ea_psmnet(config, tmp_path, deep_features):
    """Of which only the attention is new: it is the identity."""
    names = OriginalState()
    with FakeTensorMode():  # shapes alone: it takes no smaller images
        psmnet(names, *torch.zeros(2, 1, 3, 256, 256), 16, basic=False)
    state = {f"module.{name}": numbers_for(tensor) for name, tensor in names.items()}
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "original.tar")
    config = replace(config, preset="ea-psmnet", init=tmp_path / "original.tar")
    started = initial_network(config, network_config(config)).eval()
    assert started.config.attention == "efficient"
    original = load_model(tmp_path / "original.tar", max_disparity=16)
    images = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = started(*images), original(*images)
    torch.testing.assert_close(ours.disparity, theirs.disparity, rtol=0, atol=1e-3)
    assert theirs.disparity.std() > 0.01


def test_alignment_comes_with_the_weights_or_the_network_file(config, tmp_path):
    old = PSMNetConfig(width=0.25, max_disparity=16, align_corners=True)
    save_model(tmp_path / "old.safetensors", build_model(old))
    started = replace(config, init=tmp_path / "old.safetensors", steps=1)
    assert load_model(train(started)).config.align_corners
    assert not network_config(config).align_corners
    aligned = replace(TINY, align_corners=True)
    write_json(tmp_path / "network.json", aligned.to_dict())
    given = replace(config, network=tmp_path / "network.json")
    assert network_config(given) == replace(aligned, max_disparity=16)


@pytest.mark.parametrize(
    ("said", "option"),
    [({"max_disparity": 48}, "max-disparity 48"), ({"normalisation": "group"}, "n group")],
)
def test_no_default_replaces_what_the_networks_file_says(config, tmp_path, said, option):
    write_json(tmp_path / "network.json", replace(TINY, **said).to_dict())
    wide = replace(config, network=tmp_path / "network.json", crop=(64, 192), max_disparity=192)
    with pytest.raises(ValueError, match=f"give --.*{option}, or change the file"):
        network_config(wide)
    ((name, value),) = said.items()
    assert getattr(network_config(replace(wide, **said)), name) == value


def test_attention_goes_to_other_sites(config):
    trained = load_model(train(replace(config, steps=1, attention_sites=("bottleneck",))))
    assert trained.config.attention == "efficient"
    assert trained.config.attention_sites == tuple(f"hourglass{i}.bottleneck" for i in (1, 2, 3))


def test_frozen_statistics_stay_and_the_rest_trains(fixed):
    before, after = weights(fixed.init), weights(train(replace(fixed, steps=2)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("running" in name for name in changed)
    assert any(name.endswith("0.1.weight") for name in changed)


def test_group_normalisation_is_saved_with_the_network(config):
    trained = load_model(train(replace(config, steps=1, normalisation="group")))
    assert trained.config.normalisation == "group"
    assert not any("running" in name for name in trained.state_dict())


def test_the_averaged_weights_are_saved_and_the_raw_ones_kept(config):
    saved = weights(train(replace(config, steps=1, lr=1e-3, ema=0.999, save_every=1)))
    raw = raw_weights(config)
    start = start_of(config).state_dict()
    decay = 2 / 11  # after the first update
    moved = 0
    for name, first in start.items():
        if first.is_floating_point():
            expected = decay * first + (1 - decay) * raw[name]
            torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-6)
            moved += not torch.equal(saved[name], raw[name])
    assert moved > 50


def test_a_mixture_trains_on_all_its_parts(config, pairs, tmp_path, monkeypatch):
    seen = []
    step = loop.OptimiserStep.__call__

    def noting(self, batches, *rest):
        given = list(batches)
        seen.extend(name for batch in given for name in batch.names)
        return step(self, iter(given), *rest)

    monkeypatch.setattr(loop.OptimiserStep, "__call__", noting)
    other = write_pairs(tmp_path / "other", names=("a", "b"))
    mix = (f"folder:{pairs}:3", f"folder:{other}:1")
    mixed = replace(config, data="sceneflow", root=None, mix=mix)
    train(replace(mixed, batch=8, micro_batch=8, steps=1))
    assert len(seen) == 8
    assert set("ab") & set(seen)
    assert set("012345") & set(seen)
    assert (config.out / "checkpoints" / "step-0000001.pt").exists()


def test_before_the_first_step_a_run_tells_what_it_will_take(config, monkeypatch, capsys):
    """Of which the time is measured, and changes nothing."""
    run = replace(config, batch=4, micro_batch=1, steps=200)
    told, turn = [], loop._Trainer._turn

    def until_the_second(self, step, *rest):
        told.append(capsys.readouterr().err)
        if step == 1:
            raise RuntimeError("enough")
        turn(self, step, *rest)

    monkeypatch.setattr(loop._Trainer, "_turn", until_the_second)
    monkeypatch.setattr(logs, "_LONG_FOR_A_CPU", 0)
    states = []
    for worth in (500, 10**9):
        monkeypatch.setattr(loop, "_WORTH_TIMING", worth)
        out = config.out.with_name(f"timed-{worth}")
        with pytest.raises(RuntimeError, match="enough"):
            train(replace(run, out=out, save_every=1))
        states.append(load_newest(out / "checkpoints")["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    first = told[0].splitlines()
    assert first[0].startswith("training on ")
    assert "threads, float32" in first[0]
    assert "batch 4 = 1 at once x 4 in turn x 1 process; 200 steps" in first[1]
    assert first[2].startswith("estimated time: about ")
    assert "--preset ea-psmnet-small --crop 128 256" in first[3]
    assert "estimated" not in told[2]


def test_the_time_to_expect_is_told_in_its_unit_with_a_way_out():
    for seconds, told in ((20, "1 min"), (7000, "117 min"), (36000, "10 h")):
        line = f"estimated time: about {told}, if data loading keeps up"
        assert logs.expected_time(seconds, "cpu") == line
    assert "about 14,000 h (583 days)" in logs.expected_time(14_000 * 3600, "cpu")
    assert "--preset ea-psmnet-small" in logs.expected_time(14_000 * 3600, "cpu")
    assert "--preset" not in logs.expected_time(14_000 * 3600, "cuda")


# torch.compile ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_network_has_the_gradients_of_an_eager_one(config, tmp_path, monkeypatch):
    """Traced forward and backward, without code generation, which needs a C++ compiler.

    Of one hourglass, as every module takes seconds.
    """
    network = replace(TINY, hourglasses=1, attention_sites=("encoder",))
    write_json(tmp_path / "network.json", network.to_dict())
    config = replace(config, network=tmp_path / "network.json")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = (
        gradients_of_first_step(config, monkeypatch, compile=value) for value in (False, True)
    )
    for a, b in zip(eager, compiled, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm() + 1e-6
