"""Closed forms: the figures that follow from the paper's Table 1, and what our modules compute."""

import itertools

import pytest
import torch

from ea_psmnet.attention import MECHANISMS, build_attention, closed_form
from ea_psmnet.attention.base import Resources
from ea_psmnet.experiments.resources import operation_counter
from ea_psmnet.ops.efficient_block import folding_is_cheaper

# Volume: bytes and operations of efficient and non-local attention, d = 64, d_k = 32, float32.
TABLE_1 = {
    (64, 64): (("4.20e6", "0.101e9"), ("71.3e6", "3.29e9")),
    (128, 128): (("16.8e6", "0.404e9"), ("1.09e9", "51.8e9")),
    (256, 256): (("67.1e6", "1.615e9"), ("17.2e9", "825.7e9")),
    (28, 28, 4): (("3.22e6", "0.077e9"), ("42.5e6", "1.94e9")),
    (64, 64, 32): (("134e6", "3.23e9"), ("68.9e9", "3301e9")),
}
RATIOS = {
    (64, 64): ("17.0", "32.6"),
    (128, 128): ("65", "128"),
    (256, 256): ("257", "511"),
    (28, 28, 4): ("13.2", "25.1"),
    (64, 64, 32): ("513", "1022"),
}
SIZE = (3, 4, 6)


def rounded_like(value, text):
    """Whether a value, rounded to as many digits as the text has, is the text's."""
    digits = text.partition("e")[0].replace(".", "").lstrip("0")
    return float(f"{value:.{len(digits) - 1}e}") == float(text)


def table1(size):
    names = ("table1-efficient", "table1-non-local")
    return [closed_form(name, size, 64, key_channels=32) for name in names]


@pytest.mark.parametrize("size", TABLE_1)
def test_table_1_to_the_digit(size):
    for cost, (memory, operations) in zip(table1(size), TABLE_1[size], strict=True):
        assert rounded_like(cost.bytes(4), memory)
        assert rounded_like(cost.operations, operations)


@pytest.mark.parametrize("size", RATIOS)
def test_ratios_of_table_1(size):
    efficient, non_local = table1(size)
    memory, operations = RATIOS[size]
    assert rounded_like(non_local.floats / efficient.floats, memory)
    assert rounded_like(non_local.operations / efficient.operations, operations)


def test_1025_leaves_out_the_residual_sum():
    efficient, non_local = table1((64, 64, 32))
    assert round(non_local.products / efficient.products) == 1025


def test_residual_block_of_table_1():
    assert closed_form("table1-residual", (10,), 4) == Resources(200, 36 * 16 * 10, 11 * 4 * 10)


def test_the_map_takes_four_bytes_in_half_precision():
    cost = closed_form("table1-non-local", (10, 10), 4, key_channels=2)
    assert cost.map_floats == 100**2
    assert cost.bytes(4) == 4 * cost.floats
    assert cost.bytes(2) == 2 * (cost.floats - 100**2) + 4 * 100**2


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"choose from table1-efficient, .*hydra"):
        closed_form("magic", (2, 2), 8)
    with pytest.raises(ValueError, match=r"'efficient' has no option 'magic': choose from"):
        closed_form("efficient", (2, 2, 2), 8, magic=1)


# Against what the modules compute -----------------------------------------------------------------


def options():
    yield "efficient", {}
    yield "efficient", {"published_order": True}
    yield "efficient", {"positions": 2, "key_channels": 4}
    yield "efficient", {"heads": 2, "key_channels": 4, "value_channels": 6}
    yield (
        "efficient",
        {"heads": 4, "key_channels": 32},
    )  # so many that the published order is chosen
    for backend, pool in itertools.product(("naive", "sdpa"), ("none", "projected", "input")):
        yield "dot_product", {"backend": backend, "pool": pool, "key_channels": 4}
    yield "dot_product", {"normalisation": "scaling"}
    yield "dot_product", {"normalisation": "scaling", "backend": "sdpa", "pool": "input"}
    yield "focused_linear", {}
    yield "focused_linear", {"heads": 2, "key_channels": 4, "value_channels": 6, "kernel_size": 3}
    yield "external", {}
    yield "external", {"rows": 5, "final_relu": True}
    yield "hydra", {}
    yield "hydra", {"key_channels": 3}


def test_every_mechanism_is_tested():
    assert {name for name, _ in options()} == set(MECHANISMS)


@pytest.mark.parametrize(("mechanism", "chosen"), list(options()))
def test_products_are_those_that_are_counted(mechanism, chosen):
    """Exactly: the counter sees every matrix product and convolution of a forward."""
    module = build_attention(mechanism, 8, **chosen)
    with operation_counter() as counter:
        module(torch.randn(1, 8, *SIZE))
    assert closed_form(mechanism, SIZE, 8, **chosen).products == counter.get_total_flops()


@pytest.mark.parametrize("keys", [4, 8, 16])
@pytest.mark.parametrize("values", [8, 16])
@pytest.mark.parametrize("heads", [1, 4])
def test_the_cheaper_order_is_chosen_as_the_module_does(keys, values, heads):
    given = {"key_channels": keys, "value_channels": values, "heads": heads}
    chosen = closed_form("efficient", SIZE, 8, **given)
    published = closed_form("efficient", SIZE, 8, published_order=True, **given)
    assert (chosen != published) == folding_is_cheaper(8, keys, values, heads)


def test_folding_costs_eight_operations_a_channel_pair_and_one_output():
    n, d, k = 10**6, 32, 16
    cost = closed_form("efficient", (n,), d, key_channels=k)
    assert cost.floats == d * n + k * d
    assert cost.products == pytest.approx(8 * d * k * n, rel=1e-3)  # 4dk multiply-adds a position


def test_the_projection_is_what_the_module_adds_to_table_1():
    n, d = 60, 8
    ours = closed_form("efficient", (n,), d, published_order=True)
    paper = closed_form("table1-efficient", (n,), d)
    assert ours.products - paper.products == 2 * d * d * n
    assert ours.floats - paper.floats == d * n
