import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ea_psmnet.attention import closed_form
from ea_psmnet.models.psmnet import PlainPSMNet, build_model
from ea_psmnet.reports.forecast import count_parameters, forecast
from ea_psmnet.reports.variants import parse_variant

SMALL = {"width": 0.25, "max_disparity": 32}
SHAPE = (2, 32, 64)


@pytest.mark.parametrize("name", ["baseline", "efficient", "non-local", "external"])
def test_parameters_are_the_networks(name):
    config = parse_variant(name, **SMALL)
    assert count_parameters(config) == sum(p.numel() for p in build_model(config).parameters())


def test_the_papers_network_has_its_parameters_and_operations():
    """FLOPs of PSMNet at 544 x 960, D = 192: 231 G multiply-adds in 2D and 505 G in 3D."""
    config = parse_variant("baseline")
    assert count_parameters(config) == 5_224_768
    expected = forecast(config, (1, 544, 960), training=False)
    assert expected.operations / 2 == pytest.approx(736e9, rel=2e-3)
    assert expected.attention_bytes == 0


def test_operations_are_the_counted_convolutions_and_the_closed_forms():
    with FlopCounterMode(display=False) as counter:
        image = torch.rand(2, 3, 32, 64)
        PlainPSMNet(build_model(parse_variant("baseline", **SMALL)).eval())(image, image)
    bare = forecast(parse_variant("baseline", **SMALL), SHAPE, training=True).operations
    assert bare == counter.get_total_flops()
    attention = closed_form("efficient", (4, 4, 8), 16).operations
    with_it = forecast(parse_variant("efficient", **SMALL), SHAPE, training=True).operations
    assert with_it == bare + 2 * 3 * attention


def test_attention_is_held_together_in_training_and_one_by_one_in_prediction():
    config = parse_variant("non-local@encoder+bottleneck", **SMALL)
    large = 2 * closed_form("dot_product", (4, 4, 8), 16).bytes(4)
    small = 2 * closed_form("dot_product", (2, 2, 4), 16).bytes(4)
    assert forecast(config, SHAPE, training=False).attention_bytes == large
    assert forecast(config, SHAPE, training=True).attention_bytes == 3 * (large + small)


def test_maps_are_told_apart_and_sizes_padded():
    config = parse_variant("non-local", **SMALL)
    sites = forecast(config, (1, 30, 50), training=False).sites
    assert [site.map_bytes for site in sites.values()] == [(4 * 4 * 8) ** 2 * 4] * 3
    linear = forecast(parse_variant("non-local-sdpa", **SMALL), SHAPE, training=False)
    assert {site.map_bytes for site in linear.sites.values()} == {0}
