"""The arrangement for inference computes what the network does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity, profile

from ea_psmnet.models import deploy
from ea_psmnet.models.config import SITES, PSMNetConfig, preset
from ea_psmnet.models.deploy import (
    ActivatedConv2d,
    CompiledConv2d,
    CompiledConv3d,
    SlabClassifier,
    SlabConv,
    SlabResidual,
    arrange_for_inference,
)
from ea_psmnet.models.efficientnet import SameConv2d
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.ops.native.winograd import is_compiled_for, multiplies_narrow

CONFIGS = {
    "hourglass": PSMNetConfig(max_disparity=48, width=0.25),
    "basic": PSMNetConfig(max_disparity=48, width=0.25, aggregation="basic"),
    "efficient": PSMNetConfig(
        max_disparity=48, width=0.25, attention="efficient", attention_sites=SITES
    ),
    "dot_product": PSMNetConfig(
        max_disparity=48, width=0.25, attention="dot_product", attention_sites=("bottleneck",)
    ),
    "combined": PSMNetConfig(max_disparity=48, width=0.25, volume="combined"),
    "group": PSMNetConfig(max_disparity=48, width=0.25, normalisation="group"),
    "full width": PSMNetConfig(max_disparity=48),
}
MOSTLY = [*list(CONFIGS)[:-1], pytest.param("full width", marks=pytest.mark.slow)]


def network(config):
    """With statistics, gains, attention and sizes of scores as after training."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.data.uniform_(-0.2, 0.2)
        elif "projection" in name and tensor.dim() > 1:
            tensor.data.normal_(std=0.1)
    for classifier in model.aggregation.classifiers:
        classifier[2].register_forward_hook(to_unit_scores)
    with torch.no_grad():
        model(*images().float())
    for classifier in model.aggregation.classifiers:
        classifier[2]._forward_hooks.clear()
    return model


def to_unit_scores(convolution, _, scores):
    convolution.weight.data /= scores.std()


needs_compiler = pytest.mark.skipif(not is_compiled_for(16, 16), reason="no C compiler")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(deploy, "is_compiled_for", lambda *_: False)


@pytest.fixture(params=["compiled", "by torch"])
def either_way(request):
    """With compiled convolutions and without."""
    if request.param == "by torch":
        request.getfixturevalue("no_compiler")
    elif not is_compiled_for(16, 16):
        pytest.skip("no C compiler")
    return request.param


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 1, 3, 32, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_arrangement_gives_the_networks_output(name):
    model = network(CONFIGS[name]).double()
    arranged = arrange_for_inference(model, torch.float64)
    with torch.inference_mode():
        expected, actual = model(*images()).disparity, arranged(*images()).disparity
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["hourglass", "combined"])
def test_nothing_is_left_to_normalise_and_the_network_stays_as_it_is(name):
    model = network(CONFIGS[name])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arranged = arrange_for_inference(model)
    assert not any(isinstance(m, _BatchNorm) for m in arranged.modules())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MOSTLY)
def test_half_precision_stays_close(name, either_way):
    model = network(CONFIGS[name])
    arranged = arrange_for_inference(model, torch.bfloat16)
    left, right = images().float()
    types = []
    for part in (arranged.features.stages[0][0], arranged.features.fuse):
        part.register_forward_hook(lambda *given: types.append(given[2].dtype))
    with torch.inference_mode():
        expected = model(left, right).disparity
        with torch.autocast("cpu", torch.bfloat16):
            actual = arranged(left, right).disparity
    assert 0 < (actual - expected).abs().mean() < 0.3 * expected.std()
    assert types == [torch.float32, torch.float32, torch.bfloat16]  # two images, both together


@pytest.mark.usefixtures("no_compiler")
def test_small_single_volumes_take_the_same_convolution():
    model = network(CONFIGS["hourglass"])
    convolution = arrange_for_inference(model).aggregation.hourglasses[0].refine2[0][0]
    volume = torch.randn(1, 16, 3, 4, 5)
    expected = nn.functional.conv3d(volume, convolution.weight, convolution.bias, padding=1)
    with torch.inference_mode():
        torch.testing.assert_close(convolution(volume), expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("no_compiler")
def test_small_single_volumes_take_the_same_transposed_convolution():
    model = network(CONFIGS["hourglass"])
    up = arrange_for_inference(model).aggregation.hourglasses[0].up2[0]
    volume = torch.randn(1, 16, 3, 4, 5)
    expected = F.conv_transpose3d(volume, up.weight, up.bias, 2, padding=1, output_padding=1)
    with torch.inference_mode():
        torch.testing.assert_close(up(volume), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    "config",
    [CONFIGS["hourglass"], CONFIGS["efficient"], replace(preset("ea-light"), max_disparity=32)],
)
def test_no_small_volume_takes_torchs_slow_convolutions(config, either_way):
    arranged = arrange_for_inference(network(config))
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as found:
        arranged(*images().float())
    names = {event.key for event in found.key_averages()}
    assert "mkldnn::_convolution_transpose_pointwise" in names
    assert not {name for name in names if "slow_conv3d" in name or "slow_conv_transpose" in name}


def modules_of(kinds, dtype):
    """Modules by name of a full-width network."""
    arranged = arrange_for_inference(build_model(CONFIGS["full width"]), dtype)
    return {name: module for name, module in arranged.named_modules() if isinstance(module, kinds)}


@needs_compiler
def test_convolutions_of_stride_one_are_compiled():
    exact, fast = (
        modules_of(CompiledConv2d | CompiledConv3d, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    narrow = {name for name, module in fast.items() if module.kernels.dtype == torch.bfloat16}
    assert exact.keys() == fast.keys()
    assert "features.stages.1.0.conv1.0.0" not in exact  # strided
    assert all(module.kernels.dtype == torch.float32 for module in exact.values())
    volume = {"aggregation.stem.2.0", "aggregation.residuals.0.0.0", "aggregation.residuals.0.2.0"}
    assert volume | {"features.stem.2.0", "features.stages.0.0.conv2.0"} <= exact.keys() - narrow
    if multiplies_narrow():
        assert {"aggregation.classifiers.0.0.0", "features.fuse.0.0"} < narrow
    types = {name: module.dtype for name, module in fast.items()}
    assert {types[name] for name in volume} == {torch.bfloat16}
    assert {type for name, type in types.items() if "features" in name} == {torch.float32}


def test_other_types_and_devices_get_nothing_compiled(monkeypatch):
    kinds = CompiledConv2d | CompiledConv3d
    assert not modules_of(kinds, torch.float64)
    assert not modules_of(kinds, torch.float16)
    monkeypatch.setattr(deploy, "_is_on_cpu", lambda _: False)
    assert not modules_of(kinds | SlabConv, torch.bfloat16)


@needs_compiler
def test_compiled_convolutions_change_the_output_by_rounding_alone():
    model = network(PSMNetConfig(max_disparity=48, width=0.5))
    arranged = arrange_for_inference(model)
    assert any(isinstance(module, CompiledConv3d) for module in arranged.modules())
    with torch.inference_mode():
        actual = arranged(*images().float()).disparity
        expected = model.double()(*images()).disparity.float()
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "count"), [("hourglass", 2 + 3), ("basic", 5 + 1), ("group", 0)])
def test_the_finest_volumes_are_worked_on_in_slabs_where_normalisation_is_folded(
    name, count, either_way
):
    for dtype, expected in ((torch.bfloat16, count), (torch.float32, 0)):
        arranged = arrange_for_inference(build_model(CONFIGS[name]), dtype)
        kinds = SlabConv | SlabResidual | SlabClassifier
        assert sum(isinstance(m, kinds) for m in arranged.modules()) == expected


@pytest.mark.parametrize("name", ["hourglass", "basic", MOSTLY[-1]])
def test_slabs_change_no_output(name):
    arranged = arrange_for_inference(network(CONFIGS[name]).double(), torch.float64)
    with torch.inference_mode():
        whole = arranged(*images()).disparity
        deploy._take_slabs(arranged)
        torch.testing.assert_close(arranged(*images()).disparity, whole, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_convolutions_are_torchs():
    assert not modules_of(CompiledConv2d | CompiledConv3d, torch.bfloat16)


def test_images_pass_the_stem_one_after_the_other():
    arranged = arrange_for_inference(network(CONFIGS["hourglass"]))
    batches = []
    arranged.features.stem[0].register_forward_hook(lambda *given: batches.append(len(given[2])))
    with torch.inference_mode():
        arranged(*images().float())
    assert batches == [1, 1]


@pytest.mark.usefixtures("half_convolutions")
def test_padding_moves_into_the_kernels_exactly():
    """The zeros stay zeros in half precision, where kernels are rounded along their taps."""
    model = network(preset("ea-light"))
    arranged = arrange_for_inference(model, torch.bfloat16)
    fused = [m for m in arranged.modules() if isinstance(m, ActivatedConv2d)]
    strided = [m for m in fused if m.weight.shape[-1] % 2 == 0]
    assert len(strided) == 4
    for module in strided:
        assert not module.weight[..., 0, :].any()
        assert not module.weight[..., 0].any()
    plain = [m for m in model.modules() if isinstance(m, SameConv2d) and m.stride == (2, 2)]
    for module, conv in zip(strided, plain, strict=True):
        images = torch.rand(1, conv.in_channels, 32, 48)
        weight, bias = module.weight[..., 1:, 1:].float(), module.bias.float()
        before, after = conv.margins
        padded = F.pad(images.to(module.weight.dtype).float(), (before, after, before, after))
        expected = F.conv2d(padded, weight, bias, 2, 0, 1, conv.groups).clamp(0, 6)
        torch.testing.assert_close(module(images).float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_weights_that_may_overflow_keep_activations_that_keep_nan(scale):
    model = network(preset("ea-light"))
    with torch.no_grad():
        model.features.stages[1][1].layers[0][0].weight.mul_(scale)
    arranged = arrange_for_inference(model, torch.float32)
    fused = isinstance(arranged.features.stages[1][1].layers[0], ActivatedConv2d)
    assert fused == (scale == 1)
