from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ea_psmnet.attention import build_attention, closed_form
from ea_psmnet.experiments.networks import (
    VARIANTS,
    at_sites,
    count_operations,
    count_parameters,
    forecast,
    named_networks,
    parse_variant,
    site_volume,
    slug,
)
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.psmnet import PlainPSMNet, build_model
from ea_psmnet.models.weights import save_model


def test_a_text_names_mechanism_places_and_options():
    config = parse_variant(
        "non-local@volume+decoder,key_channels=16,pool=projected", width=0.5, max_disparity=96
    )
    assert config == PSMNetConfig(
        attention="dot_product",
        attention_sites=("volume", "decoder"),
        attention_options={"key_channels": 16, "pool": "projected"},
        width=0.5,
        max_disparity=96,
    )


def test_defaults_fill_in_what_a_text_leaves_out():
    assert parse_variant("efficient", sites="bottleneck").attention_sites == (
        *(f"hourglass{i}.bottleneck" for i in (1, 2, 3)),
    )
    assert parse_variant("baseline", sites="bottleneck") == PSMNetConfig()
    assert parse_variant("non-local-sdpa").attention_options == {"backend": "sdpa"}
    assert parse_variant("efficient,published_order=true").attention_options == {
        "published_order": True
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_network(name):
    model = build_model(parse_variant(name, width=0.25, max_disparity=32))
    assert bool(model.config.attention_sites) == (name != "baseline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "unknown variant 'magic': choose from baseline, efficient"),
        ("efficient@attic", "unknown attention site 'attic'"),
        ("efficient,heads", "'efficient,heads' is not a variant: examples are"),
        ("efficient@", "is not a variant"),
        ("baseline@encoder", "has no attention"),
        ("baseline,heads=2", "has no attention"),
    ],
)
def test_what_is_no_variant_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(text)


@pytest.mark.parametrize(
    "given", [([], ["light", "light"], []), ([], ["ea-light"], [Path("ea-light")])]
)
def test_networks_of_one_name_are_refused(given):
    with pytest.raises(ValueError, match=r"two networks are called '(ea-)?light'"):
        named_networks(*given, sites=["encoder"], width=1, max_disparity=192)


def test_weights_of_equal_file_names_are_called_by_as_many_folders_as_it_takes(tmp_path):
    paths = [tmp_path / run / "training" / "model.safetensors" for run in ("a", "b")]
    for path in paths:
        save_model(path, build_model(preset("ea-light")))
    networks = named_networks([], [], paths, sites=["encoder"], width=1, max_disparity=192)
    assert [network.label for network in networks] == ["a/training/model", "b/training/model"]


def test_places_multiply_what_names_none():
    texts = ["baseline", "efficient,heads=2", "hydra@volume"]
    assert at_sites(texts, ["encoder", "bottleneck+output"]) == [
        "baseline",
        "efficient@encoder,heads=2",
        "efficient@bottleneck+output,heads=2",
        "hydra@volume",
    ]


def test_slugs_are_file_names_and_differ():
    texts = ["efficient", "efficient@encoder+output,heads=2", "efficient@encoder+output,heads=4"]
    assert len({slug(text) for text in texts}) == 3
    assert not any(set(slug(text)) & set("/,= ") for text in texts)


# What a network should cost -----------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["ea-psmnet", "ea-light"])
def test_operations_are_the_networks_own_convolutions_and_the_closed_forms(name):
    config = replace(preset(name), max_disparity=32)
    assert forecast(config, SHAPE, training=True).operations == 2 * (
        _convolutions(config, SHAPE[1:])
        + sum(
            closed_form("efficient", *site_volume(config, site, SHAPE[1:])).operations
            for site in config.attention_sites
        )
    )


def _convolutions(config, size):
    """Operations of the modules of a network without attention, by hooks; two a multiply-add."""
    config = replace(config, attention="none", attention_sites=())
    network = PlainPSMNet(build_model(config).eval())
    counts = []

    def count(layer, inputs, output):
        moved = inputs[0] if layer.transposed else output
        counts.append(2 * moved.numel() * layer.weight[0].numel())

    def expect(head, inputs, output):
        counts.extend(2 * config.max_disparity * each.numel() for each in output)

    if config.head == "trilinear":  # its expectation is a matrix product
        network.head.register_forward_hook(expect)
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.conv._ConvNd):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(*torch.zeros(2, 1, 3, *size))
    return sum(counts)


def test_counted_operations_are_those_of_the_network_that_is_given():
    light = replace(preset("light"), max_disparity=32)
    assert count_operations(light, (32, 64)) == _convolutions(light, (32, 64))
    deeper = replace(light, hourglasses=3)
    assert count_operations(deeper, (32, 64)) == _convolutions(deeper, (32, 64))
    assert count_operations(deeper, (32, 64)) > count_operations(light, (32, 64))


@pytest.mark.parametrize("attention", ["non-local", "non-local-sdpa"])
def test_matrix_products_of_attention_are_counted(attention):
    bare, config = (parse_variant(text, **SMALL) for text in ("baseline", attention))
    surplus = count_operations(config, (32, 64)) - count_operations(bare, (32, 64))
    with FlopCounterMode(display=False) as counter:
        channels = config.channels(64)
        module = build_attention(config.attention, channels).eval()
        module(torch.zeros(1, channels, 4, 4, 8))
    assert surplus == 3 * counter.get_total_flops()


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
