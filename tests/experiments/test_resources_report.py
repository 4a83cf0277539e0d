import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.attention import closed_form
from ea_psmnet.attention.base import TABLE_1
from ea_psmnet.experiments.networks import network_markdown, network_report, site_volume
from ea_psmnet.experiments.plots import resource_plot
from ea_psmnet.experiments.resources import (
    CASES,
    PAPER_VOLUMES,
    decimal,
    measure,
    parse_volume,
    volume_markdown,
    volume_report,
)
from ea_psmnet.models.config import HOURGLASS_SITES, preset


@pytest.fixture(scope="module")
def small():
    return volume_report(["4x6", "3x4x6"], channels=8)


class Steps(nn.Module):
    """Makes 16 numbers twice, views and changes in place, and drops 16 at once."""

    def forward(self, x):
        doubled = x * 2  # kept: the gradient of its square needs it
        (doubled + 1).flatten()  # freed at once
        doubled.view(-1).add_(1)
        return doubled * doubled


class Sum(nn.Module):
    def forward(self, x):
        return (x + 1) + 1


def test_memory_is_counted_from_birth_to_death():
    measured = measure(Steps(), torch.zeros(1, 4, 2, 2))
    assert measured.kept_bytes == 2 * 16 * 4
    assert measured.peak_bytes == 2 * 16 * 4
    assert measured.products == 0


def test_the_peak_holds_what_is_gone_at_the_end():
    measured = measure(Sum(), torch.zeros(1, 4, 2, 2))
    assert (measured.kept_bytes, measured.peak_bytes) == (16 * 4, 2 * 16 * 4)


def test_operations_are_two_a_multiply_add():
    layer = nn.Conv3d(2, 3, kernel_size=1)
    assert measure(layer, torch.zeros(1, 2, 2, 2, 2)).products == 2 * 8 * 2 * 3


def test_half_precision_is_measured_as_trained():
    module = nn.Conv3d(2, 3, 1)
    assert measure(module, torch.zeros(1, 2, 8, 8, 8, dtype=torch.bfloat16)).products > 0
    assert module.weight.dtype == torch.float32


def test_what_is_counted_is_the_closed_form(small):
    assert {row.case for row in small.rows} == set(CASES)
    for row in small.rows:
        assert row.measured.products == row.resources.products, row.case


def test_a_naive_map_is_kept_once_and_peaks_twice():
    (row,) = volume_report(["24x24"], channels=4, cases=["dot_product"]).rows
    n_squared = 4 * 576**2
    assert row.measured.kept_bytes == pytest.approx(n_squared, rel=0.05)
    assert row.measured.peak_bytes == pytest.approx(2 * n_squared, rel=0.05)


@pytest.mark.parametrize("case", ["table1-efficient", "table1-non-local"])
def test_what_table_1_counts_and_is_not_kept_is_the_branch_before_the_sum(case):
    (row,) = volume_report(["8x9"], channels=8, cases=[case]).rows
    assert row.bytes - row.measured.kept_bytes == 8 * 72 * 4


def test_efficient_attention_keeps_its_output_and_little_more():
    (row,) = volume_report(["64x64"], channels=32, cases=["efficient"]).rows
    assert row.measured.kept_bytes == row.bytes + 4 * 16  # the log-sum-exps


def test_nothing_is_measured_above_the_limits():
    report = volume_report(["4x6"], channels=8, limit=0)
    assert all(row.measured is None for row in report.rows)
    assert "not measured" in volume_markdown(report)
    huge = volume_report(["1024x1024x64"], cases=["efficient"], limit=2**60)
    assert huge.rows[0].measured is None


def test_the_report_says_where_the_papers_text_differs():
    report = volume_report(PAPER_VOLUMES, cases=list(TABLE_1)[:2], limit=0)
    text = volume_markdown(report)
    assert "412 G operations is half" in text
    assert "2 times: does not follow" in text
    assert "1/32 of the memory does not follow" in text
    assert "| 64x64x32 | 513.0  | 1022.0" in text
    assert "71.3 MB" in text
    other = volume_report(PAPER_VOLUMES, channels=32, cases=list(TABLE_1)[:2], limit=0)
    assert "does not follow" not in volume_markdown(other)


def test_a_form_that_is_wrong_is_told(small):
    row = small.rows[0]
    wrong = replace(row, resources=replace(row.resources, products=1))
    assert "differs" not in volume_markdown(small)
    assert f"differs from the closed form: {row.case}." in volume_markdown(
        replace(small, rows=[wrong])
    )


def test_json_keeps_everything(small):
    values = json.loads(json.dumps(small.to_dict()))
    assert set(values) == {
        *("channels", "key_channels", "dtype", "limit"),
        *("rows", "ratios", "notes"),
    }
    row = values["rows"][0]
    assert set(row) == {"volume", "positions", "case", "resources", "bytes", "measured"}
    assert set(row["resources"]) == {"floats", "products", "others", "map_floats", "operations"}
    assert set(row["measured"]) == {"kept_bytes", "peak_bytes", "products"}
    assert row["bytes"] == 4 * row["resources"]["floats"]


def test_the_plot_shows_all(small):
    picture = resource_plot(small)
    assert picture.shape[2] == 3
    # The residual block's vermilion, hydra's blue, focused linear's purple: not by accident.
    for colour in ((213, 94, 0), (86, 180, 233), (204, 121, 167)):
        assert (picture == colour).all(axis=2).sum() > 200


def test_the_plot_takes_any_size():
    report = volume_report(["4x4", f"{2**32}x{2**32}"], cases=["efficient"], limit=0)
    assert resource_plot(report).shape[2] == 3


@pytest.mark.parametrize("text", ["", "64", "64x", "1x1", "64 x 64", "0x4", "2x2x2x2", "-4x4"])
def test_what_is_no_volume_is_refused(text):
    with pytest.raises(ValueError, match="not a volume"):
        parse_volume(text)


@pytest.mark.parametrize(
    "wrong",
    [{"cases": ["magic"]}, {"dtype": "int8"}, {"channels": 0}, {"key_channels": 0}],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"choose from|too few"):
        volume_report(["4x4"], **wrong)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (4_202_496, "4.20 M"), (1e9, "1.00 G"), (999_600, "1.00 M"),
     (3.301e12, "3.30 T"), (70_300_000, "70.3 M"), (99_970, "100 k")],
)  # fmt: skip
def test_three_digits(count, text):
    assert decimal(count) == text


# A network ----------------------------------------------------------------------------------------


def test_sites_are_where_the_network_has_them():
    config = PSMNetConfig(
        max_disparity=32,
        width=0.25,
        attention="efficient",
        attention_sites=("volume", *HOURGLASS_SITES),
    )
    model = build_model(config).eval()
    seen = {}

    def watch(name):
        return lambda _, inputs: seen.__setitem__(name, inputs[0].shape)

    aggregation = model.aggregation
    aggregation.attention.register_forward_pre_hook(watch("volume"))
    for index, hourglass in enumerate(aggregation.hourglasses, start=1):
        for site, module in hourglass.attention.items():
            module.register_forward_pre_hook(watch(f"hourglass{index}.{site}"))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 48, 64), torch.zeros(1, 3, 48, 64))
    assert set(seen) == set(config.attention_sites)
    for site, shape in seen.items():
        size, channels = site_volume(config, site, (48, 64))
        assert shape == (1, channels, *size), site


def test_naive_maps_of_a_full_network():
    """Figures of one n x n map at D = 192: 153 GB at 1/8 of 544 x 960, 2.4 GB at 1/16."""
    report = network_report(preset("nonlocal-psmnet"), (540, 960), batch=2)
    assert report.size == (544, 960)
    assert [site.name for site in report.sites] == [f"hourglass{i}.encoder" for i in (1, 2, 3)]
    first = report.sites[0]
    assert first.size == (24, 68, 120)
    assert first.positions == 195_840
    assert first.map_bytes == 2 * 4 * 195_840**2
    cost = closed_form("dot_product", first.size, 64)
    assert first.bytes == 2 * cost.bytes(4)
    assert first.operations == 2 * cost.operations
    assert decimal(first.map_bytes / 2, "B") == "153 GB"


def test_the_network_table_has_a_sum():
    report = network_report(preset("ea-psmnet"), (256, 512), dtype="bfloat16")
    text = network_markdown(report)
    assert "| all " in text
    assert decimal(sum(site.bytes for site in report.sites), "B") in text
    assert json.loads(json.dumps(report.to_dict()))["sites"][0]["positions"] == 24 * 32 * 64


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("psmnet", (64, 64), {}, "no attention"),
        ("ea-psmnet", (0, 64), {}, "1 or more"),
        ("ea-psmnet", (64, 64), {"batch": 0}, "1 or more"),
        ("ea-psmnet", (64, 64), {"dtype": "int8"}, "choose from float32"),
    ],
)
def test_a_network_that_cannot_be_is_refused(name, size, options, message):
    with pytest.raises(ValueError, match=message):
        network_report(preset(name), size, **options)
