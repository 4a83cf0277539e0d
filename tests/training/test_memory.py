from dataclasses import replace

import pytest
import torch
from training.tiny import TINY

from ea_psmnet import machine
from ea_psmnet.files import write_json
from ea_psmnet.machine import available_memory
from ea_psmnet.models.config import preset
from ea_psmnet.training import memory
from ea_psmnet.training.loop import train
from ea_psmnet.training.memory import (
    LiveBytes,
    MemoryBudget,
    MemoryEstimate,
    estimate_memory,
)

CPU = torch.device("cpu")


def test_living_tensors_are_counted_once_and_until_they_die():
    with LiveBytes() as live:
        a = torch.zeros(256)  # 1 KiB
        b = a.view(16, 16)[:4]  # shares it
        c = a + 1
        assert live.held == 2048
        del a, b
        assert live.held == 1024
        c.add_(1)
        (c * 2).sum()
    assert live.held == 1024
    assert live.peak == 2048 + 4


def test_tensors_kept_for_the_backward_are_counted():
    x = torch.zeros(256, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp()
        assert live.held == 2048
        y.sum().backward()
    assert live.peak >= 3 * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("ea-psmnet", 256), ("nonlocal-psmnet", 192)])
def test_the_estimate_of_a_larger_volume_holds(name, width, deep_features):
    """Up to three times the largest that is measured for it, without the slack: to 25 %."""
    config = replace(preset(name), width=0.25, max_disparity=128)
    estimated = estimate_memory(config, (128, width), torch.float32).sample / memory._SLACK
    measured = memory._peak(config, (128, width, 128), torch.float32, False)
    assert estimated == pytest.approx(measured, rel=0.25)


def test_a_head_may_read_more_levels_than_small_probes_have():
    config = replace(preset("light"), width=0.25, head_options={"top_k": 20})
    assert memory._network(config, 16).config.max_disparity == 16
    assert estimate_memory(config, (64, 192), torch.float32).sample > 0


@pytest.mark.slow
def test_memory_grows_with_what_is_kept():
    config = replace(TINY, max_disparity=48)
    plain = estimate_memory(config, (64, 128), torch.float32)
    half = estimate_memory(config, (64, 128), torch.bfloat16)
    again = estimate_memory(config, (64, 128), torch.float32, checkpointing=True)
    average = estimate_memory(config, (64, 128), torch.float32, ema=True)
    assert half.sample < 0.8 * plain.sample
    assert again.sample < 0.9 * plain.sample
    assert average.fixed - memory._FIRST_USE == (plain.fixed - memory._FIRST_USE) * 5 / 4
    assert average.sample == plain.sample


def test_an_estimate_leaves_the_random_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    estimate_memory(TINY, (32, 64), torch.float32)
    assert torch.rand(1) == expected


@pytest.fixture
def planned(config, monkeypatch):
    """A plan where a sample takes 1 GiB, half with checkpointing, and so many GiB are free."""

    def make(free, structure=TINY, **changes):
        def estimate(network, size, dtype, *, checkpointing, ema):
            site = "bottleneck" in network.attention_sites[0] if network.attention_sites else True
            large = network.attention == "dot_product" and not site
            return MemoryEstimate(0, (100 if large else 1) * 2**30 // (1 + checkpointing))

        monkeypatch.setattr(memory, "estimate_memory", estimate)
        monkeypatch.setattr(memory, "available_memory", lambda device: int(free * 2**30))
        return MemoryBudget(replace(config, **changes), structure, torch.float32, CPU)

    return make


def test_the_largest_micro_batch_that_fits_and_divides_is_taken(planned):
    assert planned(100).micro_batch(24) == 24
    assert planned(13).micro_batch(24) == 8  # 11.7 are planned with
    assert planned(13).micro_batch(7) == 7
    assert planned(5).micro_batch(7) == 1
    assert planned(0.1).micro_batch(24) == 1


def test_what_does_not_fit_is_refused_with_what_would(planned):
    planned(13).check(13)
    with pytest.raises(ValueError, match=r"of 24 needs about 24.0 GiB of memory, but "
                       r"only 13.0 GiB is free: take --micro-batch 12; or") as caught:  # fmt: skip
        planned(13).check(24)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"take --checkpointing with --micro-batch 1 \(about 0.5"):
        planned(0.7).check(1)
    with pytest.raises(ValueError, match="lower --crop or --max-disparity"):
        planned(0.2).check(1)
    with pytest.raises(ValueError, match="take --attention-sites bottleneck"):
        planned(2, preset("nonlocal-psmnet")).check(1)
    with pytest.raises(ValueError, match="lower --crop"):
        planned(0.4, checkpointing=True).check(4)


def test_a_run_that_has_begun_keeps_its_settings(planned, config):
    write_json(config.out / "config.json", {})
    with pytest.raises(ValueError, match="free: close other programs"):
        planned(13).check(24)


def test_a_run_that_does_not_fit_writes_nothing(config, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"0.0 GiB is free: lower --crop"):
        train(replace(config, memory_check=True, checkpointing=True))
    assert not config.out.exists()


def test_the_micro_batch_of_a_continued_run_is_the_one_it_began_with(config, monkeypatch):
    run = replace(config, batch=4, micro_batch=None, steps=1)
    monkeypatch.setattr(MemoryBudget, "micro_batch", lambda self, share: 2)
    train(run)
    assert '"micro_batch": 2' in (config.out / "config.json").read_text()
    monkeypatch.setattr(MemoryBudget, "micro_batch", lambda self, share: share)
    train(run)
    assert '"micro_batch": 2' in (config.out / "config.json").read_text()


def test_free_memory_is_the_least_of_machine_and_container_shared_by_processes(monkeypatch):
    monkeypatch.setattr(machine, "_free_on_machine", lambda: 12 * 2**30)
    monkeypatch.setattr(machine, "_free_in_groups", lambda: 8 * 2**30)
    assert available_memory(CPU) == 8 * 2**30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(CPU) == 2 * 2**30


def test_the_machine_says_what_is_free():
    assert 2**20 < available_memory(CPU) < 2**45
