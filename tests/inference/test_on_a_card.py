"""CUDA graphs on a card, and without one whether what runs there could be recorded."""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from command_line import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.attention import MECHANISMS
from ea_psmnet.inference.graphs import GraphedForward, GraphRecorder
from ea_psmnet.models.deploy import arrange_for_inference

on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def images(size, value=1.0):
    return torch.full((1, 3, *size), value, device="cuda")


def attentive(mechanism, **options):
    return PSMNetConfig(
        max_disparity=32,
        width=0.25,
        attention=mechanism,
        attention_sites=("encoder",),
        attention_options=options,
    )


class Devices(TorchDispatchMode):
    """Notes on which devices the tensors are that operations take or make."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.seen |= {tensor.device.type for tensor in tensors}
        return result


def pretend(module):
    """Put a module on a card that is not there: shapes, types and layouts without values."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    like = {"dtype": tensor.dtype, "device": "cuda"}
                    tensors[name] = torch.empty_strided(tensor.shape, tensor.stride(), **like)


@contextmanager
def autocast_on_a_card(dtype):
    """`torch.autocast` would not, without one."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", dtype == torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        PSMNetConfig(max_disparity=32, width=0.25, align_corners=True),
        PSMNetConfig(max_disparity=32, width=0.25, normalisation="group", peak_reach=2),
        *map(attentive, MECHANISMS),
    ],
    ids=["align_corners", "group norm", *MECHANISMS],
)
def test_what_a_card_would_do_can_be_recorded(config, dtype, monkeypatch):
    """Nothing is copied to or from it, and tensors that only pretend raise if asked for a value."""
    monkeypatch.delenv("EA_PSMNET_TRITON", raising=False)
    monkeypatch.setattr("ea_psmnet.models.deploy._is_on_cpu", lambda _: False)
    model = arrange_for_inference(build_model(config), dtype)
    with FakeTensorMode(), torch.inference_mode(), autocast_on_a_card(dtype):
        pretend(model)
        left, right = (images((32, 64)) for _ in range(2))
        with Devices() as devices:
            (disparity,) = model(left, right).disparities
    assert disparity.shape == (1, 32, 64)
    assert devices.seen == {"cuda"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build_model(attentive("efficient", start="published"))
    for classifier in model.aggregation.classifiers:
        classifier[2].weight.data *= 1e-4  # undecided, as an untrained network should be
    return model.eval()


def pair(size, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.gpu
@on_card
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_replays_equal_the_eager_network_for_sizes_in_turn(network, precision):
    options = {"device": "cuda", "precision": precision}
    eager = StereoMatcher(network, **options)
    graphed = StereoMatcher(network, **options, cuda_graphs=True)
    pairs = [pair(size, seed) for seed in range(4) for size in ((96, 160), (64, 224))]
    found = [graphed(*views).disparity for views in pairs]  # kept while others are replayed
    for views, disparity in zip(pairs, found, strict=True):
        expected = eager(*views).disparity
        assert expected.std() > 0.1
        np.testing.assert_allclose(disparity, expected, rtol=0, atol=1e-3)
    kinds = [type(forward).__name__ for forward in graphed._forward._known.values()]
    assert kinds == ["function", "function"]  # replays, no modules


@pytest.mark.gpu
@on_card
def test_half_of_the_memory_is_left_to_graphs(network):
    rooms = [
        StereoMatcher(network, device="cuda", memory=2**33, cuda_graphs=graphs)._room
        for graphs in (False, True)
    ]
    assert rooms[1] == pytest.approx(rooms[0] / 2, rel=0.01)


@pytest.mark.gpu
@on_card
def test_graphs_share_one_pool_and_give_it_back():
    def large(left, right):
        return [(left.repeat(64, 1, 1, 1) * right).sum(0)]

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graphed = GraphedForward(large, GraphRecorder())
    for size in ((512, 1024), (512, 1024), (512, 1000), (512, 1000)):
        graphed(images(size), images(size))
    pools = {graph.pool() for graph in graphed._record._graphs}
    assert len(graphed._record._graphs) == 2
    assert len(pools) == 1
    del graphed
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2**26


@pytest.mark.gpu
@on_card
def test_a_failed_recording_leaves_stream_and_results_as_they_were():
    def unwilling(left, right):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not while recorded")
        return [left + right]

    graphed, stream = GraphedForward(unwilling, GraphRecorder()), torch.cuda.current_stream()
    left, right = (images((16, 32), value) for value in (1.0, 2.0))
    graphed(left, right)
    with pytest.warns(UserWarning, match="not while recorded"):
        (total,) = graphed(left, right)
    assert torch.equal(total, images((16, 32), 3.0))
    assert torch.cuda.current_stream() == stream


WAITING = """
import torch
from ea_psmnet.inference.graphs import GraphedForward, GraphRecorder
graphed = GraphedForward(lambda left, right: [left * right.max().item()], GraphRecorder())
left = torch.full((1, 3, 16, 32), 2.0, device="cuda")
stream = torch.cuda.current_stream()
for value in (1.0, 2.0, 3.0):
    (product,) = graphed(left, torch.full_like(left, value))
    assert product.eq(2 * value).all(), value
assert torch.cuda.current_stream() == stream
"""


@pytest.mark.gpu
@on_card
def test_what_waits_for_the_card_goes_on_without_a_graph():
    """In a process of its own: torch's allocator does not forget such an attempt."""
    result = subprocess.run(
        [sys.executable, "-c", WAITING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no CUDA graph, going on without") == 1
