from dataclasses import replace

import pytest
import torch
from torch import nn

from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.normalisation import (
    ReducedBatchNorm,
    batch_norms,
    freeze_statistics,
    synchronise,
    to_group_norm,
)
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model, save_model

SMALL = PSMNetConfig(width=0.25, max_disparity=32)


def test_groups_are_of_eight_channels_and_parameters_keep_their_names():
    plain, grouped = build_model(SMALL), build_model(replace(SMALL, normalisation="group"))
    assert dict(plain.named_parameters()).keys() == dict(grouped.named_parameters()).keys()
    assert not list(batch_norms(grouped))
    norms = [m for m in grouped.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == len(list(batch_norms(plain)))
    assert all(norm.num_channels == 8 * norm.num_groups for norm in norms)


def test_channels_that_are_no_multiple_of_eight_are_divided_evenly():
    layers = nn.Sequential(nn.BatchNorm2d(12), nn.BatchNorm3d(20))
    to_group_norm(layers)
    assert [norm.num_groups for norm in layers] == [3, 5]


def test_a_sample_does_not_see_the_others_of_its_batch():
    torch.manual_seed(0)
    network = build_model(replace(SMALL, normalisation="group")).train()
    images = torch.rand(2, 3, 3, 32, 64)  # (views, B, 3, H, W)
    with torch.no_grad():
        together = network(*images).disparities
        alone = network(*images[:, 1:2]).disparities
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[1:2], other, rtol=0, atol=1e-3)


def test_attention_that_starts_as_the_identity_still_does():
    """Non-local attention ends in a batch normalisation whose gain is zero."""
    torch.manual_seed(0)
    config = replace(preset("nonlocal-psmnet"), width=0.25, max_disparity=32)
    network = build_model(replace(config, normalisation="group"))
    x = torch.rand(1, 16, 4, 4, 8)
    assert torch.equal(network.aggregation.hourglasses[0].attention["encoder"](x), x)


def test_the_kind_is_saved_with_the_weights(tmp_path):
    network = build_model(replace(SMALL, normalisation="group")).eval()
    save_model(tmp_path / "group.safetensors", network)
    loaded = load_model(tmp_path / "group.safetensors")
    images = torch.rand(2, 1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(loaded(*images).disparity, network(*images).disparity)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown normalisation 'layer': choose from batch, group"):
        PSMNetConfig(normalisation="layer")


def test_frozen_statistics_normalise_and_do_not_move():
    network = build_model(SMALL).train()
    freeze_statistics(network)
    before = [norm.running_mean.clone() for norm in batch_norms(network)]
    outputs = network(*torch.rand(2, 1, 3, 32, 64)).disparities
    assert len(outputs) == 3  # the rest still trains
    outputs[-1].sum().backward()
    for norm, mean in zip(batch_norms(network), before, strict=True):
        assert torch.equal(norm.running_mean, mean)
        assert norm.weight.grad is not None


@pytest.fixture
def two_processes(monkeypatch):
    """Sums over two processes of which the other holds the same values."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm2d, (4, 6)), (nn.BatchNorm3d, (2, 4, 6))])
def test_shared_statistics_are_those_of_the_joined_batch(two_processes, norm, shape):
    torch.manual_seed(0)
    whole = norm(5)
    nn.init.normal_(whole.weight)
    shared = ReducedBatchNorm.like(norm(5))
    shared.load_state_dict(whole.state_dict())
    part = torch.randn(3, 5, *shape) + torch.arange(5.0).view(1, 5, *[1] * len(shape))
    joined = torch.cat([part, part]).requires_grad_()
    part.requires_grad_()
    slope = torch.randn(3, 5, *shape)
    expected = whole(joined)
    made = shared(part)
    torch.testing.assert_close(made, expected[:3])
    (expected * torch.cat([slope, slope])).sum().backward()
    (made * slope).sum().backward()
    torch.testing.assert_close(part.grad, joined.grad[:3], rtol=1e-4, atol=1e-5)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(shared.get_buffer(name), buffer)


def test_shared_statistics_keep_the_type_and_are_plain_in_evaluation(two_processes):
    shared = ReducedBatchNorm.like(nn.BatchNorm2d(5))
    x = torch.randn(3, 5, 4, 6)
    assert shared(x.bfloat16()).dtype == torch.bfloat16
    plain = nn.BatchNorm2d(5).eval()
    plain.load_state_dict(shared.state_dict())
    assert torch.equal(shared.eval()(x), plain(x))


def test_sharing_replaces_every_batch_normalisation_and_keeps_its_state():
    network = build_model(replace(preset("nonlocal-psmnet"), width=0.25, max_disparity=32))
    before = network.state_dict()
    count = len(list(batch_norms(network)))
    synchronise(network, torch.device("cpu"))
    assert sum(isinstance(m, ReducedBatchNorm) for m in network.modules()) == count
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in before)
