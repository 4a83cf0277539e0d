"""Bundled weights have a description that belongs to them."""

import json
import shutil

import pytest

from ea_psmnet import StereoMatcher, build_model
from ea_psmnet.files import content_hash
from ea_psmnet.models.weights import BUNDLED, load_state, read_card

NAMES = sorted(path.stem for path in BUNDLED.glob("*.json"))


def test_the_default_has_a_card():
    assert "ea-light" in NAMES
    assert StereoMatcher.load(device="cpu").card == read_card("ea-light")


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_that_of_its_weights(name):
    card, path = read_card(name), BUNDLED / f"{name}.safetensors"
    assert card["sha256"] == content_hash(path)
    config = load_state(path)[0]
    network = build_model(config)
    assert card["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert card["max_disparity"] == config.max_disparity
    assert {"preset", "trained_on", "samples", "hours", "limits"} <= card.keys()
    for figures in (*card["figures"].values(), *card.get("figures_two_scales", {}).values()):
        assert figures["pairs"] > 0
        assert 0 < figures["epe"] < 10
        assert 0 < figures["bad_2"] < 50


def test_other_weights_have_none_unless_a_file_says_so(tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(BUNDLED / "ea-light.safetensors", path)
    matcher = StereoMatcher.load(path, device="cpu")
    assert matcher.card == {}
    assert StereoMatcher(build_model("light").eval(), device="cpu").card == {}
    path.with_suffix(".json").write_text(json.dumps({"name": "mine"}))
    assert matcher.card == {"name": "mine"}
    path.with_suffix(".json").write_text("[")
    with pytest.raises(ValueError, match=r"mine\.json"):
        _ = matcher.card
