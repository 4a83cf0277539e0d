"""A wide network that starts from a narrow one's weights."""

import pytest
import torch
from torch import nn

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.models.weights import load_into, save_model

EFFICIENT = {
    "attention": "efficient",
    "attention_sites": ("encoder", "volume"),
    "attention_options": {"heads": 2},
}


def trained_like(**options):
    """A network with statistics and attention that are not at their start."""
    torch.manual_seed(3)
    network = build_model(PSMNetConfig(max_disparity=32, **options)).eval()
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and ("running_mean" in name or "attention" in name):
            tensor.normal_(std=0.3)
    return network


def images(seed=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 32, 64, generator=generator) for _ in range(2)]


def grown(narrow, path, width, **options):
    save_model(path, narrow)
    wide = build_model(PSMNetConfig(max_disparity=32, width=width, **options)).eval()
    load_into(wide, path)
    return wide


@pytest.mark.parametrize("width", [0.25, 0.375])
@pytest.mark.parametrize("options", [{}, {"aggregation": "basic"}, EFFICIENT])
def test_it_starts_as_the_same_function(tmp_path, width, options):
    narrow = trained_like(width=0.125, **options)
    wide = grown(narrow, tmp_path / "narrow.safetensors", width, **options)
    with torch.no_grad():
        before, after = (
            net.double()(*(x.double() for x in images())).disparity for net in (narrow, wide)
        )
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3)
    assert before.std() > 0.01


def test_the_copies_part_in_training(tmp_path):
    wide = grown(trained_like(width=0.125), tmp_path / "narrow.safetensors", 0.25).train()
    sum(d.sum() for d in wide(*images()).disparities).backward()
    convolutions = [m.weight.grad for m in wide.modules() if isinstance(m, nn.Conv3d | nn.Conv2d)]
    pairs = [(g[0::2], g[1::2]) for g in convolutions if len(g) > 1]
    assert len(pairs) > 50
    # The pyramid reads so small a picture that normalisation leaves nothing of it.
    assert all(not torch.allclose(a, b) for a, b in pairs if a.abs().max() > 1e-6)


@pytest.mark.parametrize(
    ("narrow", "width", "options", "message"),
    [
        ({"width": 0.25}, 0.375, {}, "width 0.25 grows to its whole multiples, not to 0.375"),
        ({"normalisation": "group", "width": 0.25}, 0.5, {}, "groups of channels do not grow"),
        (
            EFFICIENT | {"attention_options": {"normalisation": "scaling"}, "width": 0.25},
            0.5,
            EFFICIENT,
            "attention 'efficient' changes",
        ),
    ],
)
def test_what_would_change_is_refused(tmp_path, narrow, width, options, message):
    path = tmp_path / "narrow.safetensors"
    with pytest.raises(ValueError, match=message) as refused:
        grown(trained_like(**narrow), path, width, **options)
    assert str(refused.value).startswith(str(path))


def test_a_mechanism_left_behind_does_not_stand_in_the_way(tmp_path):
    options = {"attention": "dot_product", "attention_sites": ("encoder",)}
    save_model(tmp_path / "n.safetensors", trained_like(width=0.125, **options))
    wide = build_model(PSMNetConfig(max_disparity=32, width=0.25))
    load_into(wide, tmp_path / "n.safetensors", attention=False)
    with pytest.raises(ValueError, match="attention 'dot_product' changes"):
        load_into(wide, tmp_path / "n.safetensors")
