from types import SimpleNamespace

import pytest
import torch

from ea_psmnet.experiments import measure as module
from ea_psmnet.experiments.measure import GPUS, Budget, limited, median_seconds, parse_budget

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5GiB", Budget("3.5GiB", 7 * GIB // 2)),
        ("GTX 1080 Ti", Budget("GTX 1080 Ti", 11 * GIB)),
        ("rtx-3090", Budget("RTX 3090", 24 * GIB)),
    ],
)
def test_a_budget_is_a_size_or_a_card(text, expected):
    assert parse_budget(text, "cpu") == expected


def test_a_budget_says_its_name_and_its_bytes():
    assert str(parse_budget("gtx 1080 ti", "cpu")) == "GTX 1080 Ti, 11.0 GiB"
    assert str(parse_budget("11GiB", "cpu")) == "11.0 GiB"
    assert str(parse_budget("1.07GiB", "cpu")) == "1.07GiB, 1.1 GiB"


def test_physical_memory_is_what_the_machine_says_is_free(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda device: 1000)
    assert parse_budget("physical", "cpu") == Budget("physical memory", 1000)


@pytest.mark.parametrize("text", ["GTX 9999", "11", "0GiB"])
def test_no_budget_is_refused(text):
    with pytest.raises(ValueError, match=r"GTX 1080 Ti|leaves nothing"):
        parse_budget(text, "cpu")
    assert GPUS["GTX 1080 Ti"] == 11


def test_a_limit_refuses_what_exceeds_it_and_is_lifted_again():
    with limited(100 * 2**20, torch.device("cpu")):
        torch.empty(2**20)
        with pytest.raises(RuntimeError, match="allocate"):
            torch.empty(8 * GIB, dtype=torch.uint8)
    assert torch.empty(8 * GIB, dtype=torch.uint8).numel() == 8 * GIB  # never touched


@pytest.mark.parametrize(("budget", "fraction"), [(30, 0.5), (10_000, 1.0)])
@pytest.mark.parametrize(("card", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_a_cards_limit_is_a_fraction_of_it(monkeypatch, budget, fraction, card, index):
    """Of 100 bytes 20 are taken; torch's own functions, on a driver that is made up."""
    said = []
    stand_ins = {
        "current_device": lambda: 1,
        "empty_cache": lambda: said.append("emptied"),
        "memory_reserved": lambda _: 20,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=100),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(
        torch._C, "_cuda_setMemoryFraction", lambda *given: said.append(given), raising=False
    )
    with limited(budget, torch.device(card)):
        assert said == ["emptied", (fraction, index)]
    assert said[2:] == [(1.0, index)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cards_limit_refuses_refuses_what_exceeds_it_and_is_lifted_again():
    card = torch.device("cuda")
    with limited(100 * 2**20, card):
        torch.empty(2**20, device=card)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**29, dtype=torch.uint8, device=card)
    assert torch.empty(2**29, dtype=torch.uint8, device=card).numel() == 2**29


def test_the_median_leaves_out_the_first_run(monkeypatch):
    clock = iter([0, 100, 100, 101, 101, 104, 104, 106])  # 100, 1, 3 and 2 seconds
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    runs = []
    assert median_seconds(lambda: runs.append(0), torch.device("cpu"), 3) == 2
    assert len(runs) == 4
