import pytest

from ea_psmnet.experiments.networks import VARIANTS, at_sites, parse_variant, slug
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import build_model


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
        ("efficient,heads", "'efficient,heads' is no variant: examples are"),
        ("efficient@", "is no variant"),
        ("baseline@encoder", "has no attention"),
        ("baseline,heads=2", "has no attention"),
    ],
)
def test_what_is_no_variant_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(text)


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
