"""The network against its published form, and against itself with checkpointing."""

import copy
import subprocess
import sys

import pytest
import torch

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PlainPSMNet, build_model
from ea_psmnet.ops.cost_volume import PairVolume


def network(**options):
    torch.manual_seed(0)
    config = PSMNetConfig(
        max_disparity=48, width=0.25, attention="efficient", attention_sites=("encoder",)
    )
    model = build_model(PSMNetConfig(**options) if options else config).double()
    for classifier in model.aggregation.classifiers:
        classifier[2].weight.data *= 1e-4  # undecided, so that every disparity has a say
    return model


def images(batch=2, height=32, width=64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 3, height, width, generator=generator, dtype=torch.float64)


BASIC = {"aggregation": "basic", "max_disparity": 32, "width": 0.25}


@pytest.mark.parametrize(
    "options", [{}, BASIC, {**BASIC, "align_corners": True}, {**BASIC, "peak_reach": 1}]
)
def test_the_network_computes_what_the_published_form_does(options):
    model = network(**options).eval()
    fast = copy.deepcopy(model)
    to_channels_last(fast)
    with torch.no_grad():
        plain, ours = PlainPSMNet(model)(*images()), fast(*images())
    assert plain.disparity.std() > 0.1
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-9)


def gradients(model, inputs):
    outputs = model(*inputs).disparities
    sum((i + 1) * output.square().sum() for i, output in enumerate(outputs)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_equal_the_published_forms():
    model = network().train()
    model.features.eval()  # in training its statistics are of both images together
    plain = PlainPSMNet(model)
    plain.features.eval()
    expected = gradients(plain, images())
    for name, gradient in gradients(model, images()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("options", [{}, BASIC])
def test_checkpointing_changes_neither_gradients_nor_statistics(options):
    model = network(**options).train()
    saving = copy.deepcopy(model)
    saving.checkpointing = True
    expected = gradients(model, images())
    for name, gradient in gradients(saving, images()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    for (name, ours), (_, theirs) in zip(
        saving.named_buffers(), model.named_buffers(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_checkpointing_keeps_less():
    kept = {}
    for checkpointing in (False, True):
        model = network().train()
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
