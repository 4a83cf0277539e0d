"""The network: its sizes and outputs, against its published form, and with checkpointing."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ea_psmnet import PSMNet, PSMNetConfig, build_model
from ea_psmnet.attention import DotProductAttention, EfficientAttention
from ea_psmnet.models.config import PRESETS, SITES, preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PlainPSMNet
from ea_psmnet.ops.cost_volume import PairVolume
from ea_psmnet.ops.regression import soft_argmin


def images(height=32, width=64, batch=1):
    generator = torch.Generator().manual_seed(8)
    return [torch.rand(batch, 3, height, width, generator=generator) for _ in range(2)]


def small(**changes):
    return replace(PSMNetConfig(max_disparity=32, width=0.25), **changes)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_published_network_has_its_published_size():
    assert count(build_model("psmnet")) == 5_224_768


def test_half_the_channels_are_a_quarter_of_the_size():
    assert count(build_model("psmnet-small")) / 5_224_768 == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("aggregation", ["hourglass", "basic"])
def test_training_gives_every_output_and_evaluation_the_last(aggregation):
    model = build_model(small(aggregation=aggregation))
    outputs = model.train()(*images(batch=2)).disparities
    assert len(outputs) == (3 if aggregation == "hourglass" else 1)
    assert all(output.shape == (2, 32, 64) for output in outputs)
    assert all(output.min() >= 0 and output.max() <= 31 for output in outputs)
    assert len(model.eval()(*images()).disparities) == 1


@pytest.mark.parametrize("aggregation", ["hourglass", "basic"])
def test_the_scores_behind_the_disparities_come_along(aggregation):
    model = build_model(small(aggregation=aggregation)).train()
    output = model(*images(batch=2))
    for disparity, score in zip(output.disparities, output.scores, strict=True):
        assert score.shape == (2, 8, 8, 16)
        torch.testing.assert_close(soft_argmin(score, (32, 32, 64)), disparity)
    assert len(model.eval()(*images()).scores) == 1


def test_the_likeliest_alone_counts_in_evaluation_not_in_training():
    torch.manual_seed(0)
    model, given = build_model(small()), images(batch=2)

    def outputs():
        for reach in (0, 1):
            model.head.peak_reach = reach
            yield model(*given).disparity

    model.train()
    torch.testing.assert_close(*outputs())
    model.eval()
    everything, likeliest = outputs()
    assert (everything - likeliest).abs().mean() > 0.1


def test_every_parameter_of_the_network_gets_a_gradient():
    model = build_model(small(attention="efficient", attention_sites=SITES)).train()
    sum(output.sum() for output in model(*images(batch=2)).disparities).backward()
    # The identity start stops the gradient before the queries, keys and values.
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_both_images_pass_the_same_features():
    model = build_model(small()).double().eval()
    left, right = (image.double() for image in images())
    torch.testing.assert_close(
        model.features(torch.cat([left, right]))[0][1:], model.features(right)[0], rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("mechanism", ["efficient", "dot_product"])
def test_attention_sits_where_it_is_asked_and_starts_as_the_identity(mechanism):
    torch.manual_seed(9)
    plain = build_model(small()).eval()
    model = build_model(small(attention=mechanism, attention_sites=SITES)).eval()
    kinds = (EfficientAttention, DotProductAttention)
    placed = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    assert placed == {module_at(site) for site in SITES}
    missing, surplus = model.load_state_dict(plain.state_dict(), strict=False)
    assert surplus == []
    assert all(name.startswith(tuple(placed)) for name in missing)
    with torch.no_grad():
        torch.testing.assert_close(model(*images()), plain(*images()), rtol=0, atol=0)


def module_at(site):
    stage, _, place = site.partition(".")
    if site == "volume":
        return "aggregation.attention"
    return f"aggregation.hourglasses.{int(stage[-1]) - 1}.attention.{place}"


@pytest.mark.parametrize("site", ["volume", "hourglass2.bottleneck"])
def test_attention_is_nowhere_else(site):
    model = build_model(small(attention="efficient", attention_sites=(site,)))
    placed = [n for n, module in model.named_modules() if isinstance(module, EfficientAttention)]
    assert placed == [module_at(site)]


def test_attention_at_every_site_changes_the_output_once_trained():
    model = build_model(small(attention="efficient", attention_sites=SITES)).eval()
    with torch.no_grad():
        before = model(*images()).disparity
        for site in SITES:
            weight = model.get_submodule(module_at(site)).projection.weight
            start = weight.clone()
            weight.normal_(std=0.3)
            assert (model(*images()).disparity - before).abs().max() > 1e-6, site
            weight.copy_(start)


def test_presets_put_both_attentions_at_the_same_sites():
    assert PRESETS["ea-psmnet"].attention_sites == PRESETS["nonlocal-psmnet"].attention_sites
    assert set(PRESETS) == {
        name + suffix
        for name in ("psmnet", "ea-psmnet", "nonlocal-psmnet")
        for suffix in ("", "-small")
    } | {"light", "ea-light", "nonlocal-light"}


def test_a_bare_site_stands_for_all_three_hourglasses():
    config = small(attention="efficient", attention_sites=("bottleneck",))
    assert config.attention_sites == tuple(f"hourglass{i}.bottleneck" for i in (1, 2, 3))


def test_configuration_survives_json():
    config = small(
        attention="efficient", attention_sites=("volume",), attention_options={"heads": 2}
    )
    again = PSMNetConfig.from_dict(config.to_dict())
    assert {again, config} == {config}  # equal, with the same hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_disparity": 100}, "multiple of 16, not 100: try 112"),
        ({"width": 0.3}, "width"),
        ({"peak_reach": -1}, "peak reach must be 0 or more"),
        ({"peak_reach": True}, "peak reach must be a whole number, not True"),
        ({"aggregation": "deep"}, "unknown aggregation 'deep'"),
        ({"attention": "efficient"}, "needs at least one site"),
        ({"attention_sites": ("volume",)}, "needs at least one site"),
        ({"attention": "efficient", "attention_sites": ("middle",)}, "choose from encoder"),
        (
            {"attention": "efficient", "attention_sites": ("encoder",), "aggregation": "basic"},
            "no hourglass",
        ),
    ],
)
def test_impossible_configurations_say_what_is_possible(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_unknown_presets_and_settings_are_named():
    with pytest.raises(ValueError, match=r"'psmnet2'.*ea-psmnet"):
        build_model("psmnet2")
    with pytest.raises(ValueError, match="unknown model setting 'depth'"):
        PSMNetConfig.from_dict({"depth": 3})


def test_sizes_the_network_cannot_take_are_explained():
    model = PSMNet(small()).eval()
    with pytest.raises(ValueError, match="30 x 60: pad by 2 rows and 4 columns"):
        model(*images(30, 60))
    with pytest.raises(ValueError, match="one shape"):
        model(images(32, 64)[0], images(32, 80)[0])


def network_in_float64(**options):
    torch.manual_seed(0)
    config = PSMNetConfig(
        max_disparity=48, width=0.25, attention="efficient", attention_sites=("encoder",)
    )
    model = build_model(PSMNetConfig(**options) if options else config).double()
    for classifier in model.aggregation.classifiers:
        classifier[2].weight.data *= 1e-4  # undecided, so that every disparity has a say
    return model


def images_in_float64(batch=2, height=32, width=64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 3, height, width, generator=generator, dtype=torch.float64)


BASIC = {"aggregation": "basic", "max_disparity": 32, "width": 0.25}


@pytest.mark.parametrize(
    "options", [{}, BASIC, {**BASIC, "align_corners": True}, {**BASIC, "peak_reach": 1}]
)
def test_the_network_computes_what_the_published_form_does(options):
    model = network_in_float64(**options).eval()
    fast = copy.deepcopy(model)
    to_channels_last(fast)
    with torch.no_grad():
        plain, ours = PlainPSMNet(model)(*images_in_float64()), fast(*images_in_float64())
    assert plain.disparity.std() > 0.1
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-9)


def gradients(model, inputs):
    outputs = model(*inputs).disparities
    sum((i + 1) * output.square().sum() for i, output in enumerate(outputs)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_equal_the_published_forms():
    model = network_in_float64().train()
    model.features.eval()  # in training its statistics are of both images together
    plain = PlainPSMNet(model)
    plain.features.eval()
    expected = gradients(plain, images_in_float64())
    for name, gradient in gradients(model, images_in_float64()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("options", [{}, BASIC])
def test_checkpointing_changes_neither_gradients_nor_statistics(options):
    model = network_in_float64(**options).train()
    saving = copy.deepcopy(model)
    saving.checkpointing = True
    expected = gradients(model, images_in_float64())
    for name, gradient in gradients(saving, images_in_float64()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    for (name, ours), (_, theirs) in zip(
        saving.named_buffers(), model.named_buffers(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_checkpointing_goes_with_bfloat16():
    """The light network's convolutions and normalisations have forms of their own there."""
    torch.manual_seed(3)
    model = build_model(replace(preset("light"), max_disparity=32)).train()
    saving = copy.deepcopy(model)
    saving.checkpointing = True
    images = torch.rand(2, 1, 3, 64, 64)
    for network in (model, saving):
        with torch.autocast("cpu", torch.bfloat16):
            output = network(*images)
        output.disparity.sum().backward()
    # Gradients that meet are rounded to bfloat16 in another order, so none are equal.
    ours, theirs = (network.head.parameters() for network in (saving, model))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert all(parameter.grad.isfinite().all() for parameter in saving.parameters())
    for (name, ours), theirs in zip(saving.named_buffers(), model.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(ours, theirs), name


def test_checkpointing_keeps_less():
    kept = {}
    for checkpointing in (False, True):
        model = network_in_float64().train()
        model.checkpointing = checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            scores = model.aggregation((volume(),), {})
        kept[checkpointing] = sum(sizes)
        assert all(score.requires_grad for score in scores)
    assert kept[True] < 0.5 * kept[False]


def volume():
    left, right = torch.randn(2, 2, 8, 8, 16, dtype=torch.float64)
    return PairVolume(left, right, 12)


@pytest.mark.slow
def test_a_narrow_channels_last_training_step_survives():
    # In a process of its own: what it guards against kills the process.
    script = """
import torch
from ea_psmnet.models.layers import conv2d_bn, to_channels_last
layer = conv2d_bn(8, 16, 1, stride=2)
to_channels_last(layer)
images = torch.rand(2, 8, 64, 128).contiguous(memory_format=torch.channels_last).requires_grad_()
for _ in range(3):
    layer(images).sum().backward()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
