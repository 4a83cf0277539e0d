"""Exported graphs compute what the network does: each operator quickly, whole networks slowly."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorrt_operators import TENSORRT
from torch import nn

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.attention import MECHANISMS
from ea_psmnet.models.config import PRESETS
from ea_psmnet.models.deploy import ExportableNetwork
from ea_psmnet.models.features import clamped_pool
from ea_psmnet.models.head import HEADS, build_head
from ea_psmnet.models.psmnet import PairFeatures, PlainPSMNet
from ea_psmnet.models.volume import VOLUMES, build_volume
from ea_psmnet.ops.cost_volume import (
    concat_volume_reference,
    concat_volume_stacked,
)

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

OPTIONS = {"focused_linear": {"heads": 2}, "efficient": {"heads": 2}}


def shaken(module):
    """The module in evaluation mode with every parameter and statistic at random."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point() and (tensor.dim() < 3 or "projection" in name):
            tensor.data.normal_(std=0.2, generator=generator)
    return module.eval().requires_grad_(False)


def graph(module, inputs, free=None):
    """Trace a module; returns the graph as a function of arrays, after checks of its operators."""
    program = torch.onnx.export(
        module.eval(), inputs, dynamo=True, opset_version=20, dynamic_shapes=free, verbose=False
    )
    model = program.model_proto
    operators = {(node.domain, node.op_type) for node in model.graph.node}
    assert operators <= {("", name) for name in TENSORRT}
    session = runtime.InferenceSession(model.SerializeToString())
    names = [given.name for given in session.get_inputs()]

    def run(*tensors):
        arrays = (tensor.numpy() for tensor in tensors)
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return run


class Function(nn.Module):
    """A function of tensors as a module, with the modules that it calls."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*inputs)


def assert_close(found, expected, tolerance):
    assert np.abs(found - expected.numpy()).max() < tolerance


# A stacked volume --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 5, 12])  # 12 are more than the map is wide
def test_the_stacked_volume_is_the_published_one(levels):
    left, right = torch.randn(2, 2, 8, 3, 7)
    stacked = concat_volume_stacked(left, right, levels)
    assert torch.equal(stacked, concat_volume_reference(left, right, levels))


# Operators ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanisms(mechanism):
    module = shaken(MECHANISMS[mechanism](8, **OPTIONS.get(mechanism, {})))
    free = {2: torch.export.Dim("d"), 3: torch.export.Dim("h"), 4: torch.export.Dim("w")}
    run = graph(copy.deepcopy(module), (torch.randn(1, 8, 4, 6, 10),), (free,))
    volume = torch.randn(1, 8, 3, 5, 14)
    assert_close(run(volume), module(volume), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(name):
    volume = shaken(build_volume(PSMNetConfig(volume=name), 16))

    def parts(left, right):
        made = volume(left, right, 5)
        whole = (p if isinstance(p, torch.Tensor) else concat_volume_reference(*p) for p in made)
        return torch.cat(tuple(whole), dim=1)

    sides = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    images = torch.randn(2, 1, 16, 6, 10)
    run = graph(Function(parts, volume), tuple(images), ((sides, sides),))
    for size in ((6, 10), (3, 4)):
        images = torch.randn(2, 1, 16, *size)
        assert_close(run(*images), parts(*images), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("trilinear", {"peak_reach": 2}),
        ("trilinear", {"align_corners": True}),
        ("learned", {"head_options": {"top_k": 2}}),
        ("learned", {"peak_reach": 1}),
    ],
    ids=str,
)
def test_heads(name, changes):
    config = PSMNetConfig(max_disparity=32, head=name, **changes)
    head = shaken(build_head(config, {2: 4, 4: 8}))

    def regress(scores, fine, coarse):
        return head([scores], {2: fine, 4: coarse})[0]

    def given(height, width):
        return (
            4 * torch.randn(1, 8, height, width),
            torch.randn(1, 4, 2 * height, 2 * width),
            torch.randn(1, 8, height, width),
        )

    run = graph(Function(regress, head), given(6, 10))
    tensors = given(6, 10)
    with torch.inference_mode():
        assert_close(run(*tensors), regress(*tensors), 1e-3)


@pytest.mark.slow
def test_pools_of_maps_of_any_size():
    window = 16
    sides = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    pool = Function(lambda maps: clamped_pool(maps, window))
    run = graph(pool, (torch.randn(1, 2, 12, 20),), ((sides,),))
    for size in ((12, 20), (5, 40), (33, 7), (17, 16)):
        maps = torch.randn(1, 2, *size)
        assert_close(run(maps), clamped_pool(maps, window), 1e-5)


# Networks -----------------------------------------------------------------------------------------


def images(size):
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.random((1, 3, size[0], size[1] + 8), dtype=np.float32))
    return wide[..., 8:].contiguous(), wide[..., :-8].contiguous()


def network(config):
    """With scores of unit size, as after training, so that no rounding error is multiplied."""
    torch.manual_seed(0)
    model = shaken(build_model(config))
    with torch.no_grad():
        for classifier in model.aggregation.classifiers:
            hook = classifier[2].register_forward_hook(to_unit)
            model(*images((32, 64)))
            hook.remove()
    return model


def to_unit(convolution, _, scores):
    convolution.weight.data /= scores.std()


# The others have the same graphs, of other widths or with another attention.
NETWORKS = {name: PRESETS[name] for name in ("ea-light", "ea-psmnet-small")} | {
    "other": PSMNetConfig(
        width=0.25, aggregation="basic", normalisation="group", align_corners=True
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model = network(replace(NETWORKS[name], max_disparity=32))
    pair = images((64, 96))
    run = graph(ExportableNetwork(model), pair)
    with torch.no_grad():
        expected = PlainPSMNet(model)(*pair).disparity
    assert_close(run(*pair), expected, 0.01)


class Volumes(nn.Module):
    """A network from the features of both images on, which are its slow part to trace."""

    def __init__(self, model):
        super().__init__()
        self.network = ExportableNetwork(model).network

    def forward(self, left, right, *guides):
        features = PairFeatures(left, right, dict(zip((2, 4, 8, 16), guides, strict=False)))
        scores = self.network.aggregate(self.network.build(features), features.guides)
        return self.network.regress(scores, features.guides).disparity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mechanism", "volume", "head"),
    # Each mechanism, each volume with each head: what is next to each other in a graph.
    list(zip(["none", *MECHANISMS], [*VOLUMES] * 2, [*HEADS] * 3, strict=True)),
)
def test_every_mechanism_with_every_volume_and_head(mechanism, volume, head):
    sites = () if mechanism == "none" else ("encoder", "hourglass1.bottleneck")
    config = PSMNetConfig(
        max_disparity=32,
        width=0.25,
        hourglasses=1,
        residuals=0,
        attention=mechanism,
        attention_sites=sites,
        volume=volume,
        head=head,
    )
    model = network(config)
    features = model.extract(*images((32, 64)))
    given = (features.left, features.right, *features.guides.values())
    run = graph(Volumes(model), given)
    assert_close(run(*given), model(*images((32, 64))).disparity, 0.01)
