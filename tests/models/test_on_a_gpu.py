"""A forward on a GPU stays there; the GPU is only pretended."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.attention import MECHANISMS
from ea_psmnet.models.deploy import arrange_for_inference


def images(size, value=1.0):
    return torch.full((1, 3, *size), value, device="cuda")


def attentive(mechanism, **options):
    return PSMNetConfig(
        max_disparity=32,
        width=0.25,
        hourglasses=1,
        attention=mechanism,
        attention_sites=("encoder",),
        attention_options=options,
    )


class Devices(TorchDispatchMode):
    """Records the devices of all tensors that operations take or return."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.seen |= {tensor.device.type for tensor in tensors}
        return result


def pretend(module):
    """Put a module on a GPU that does not exist: shapes, types and layouts without values."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    like = {"dtype": tensor.dtype, "device": "cuda"}
                    tensors[name] = torch.empty_strided(tensor.shape, tensor.stride(), **like)


@contextmanager
def autocast_on_a_gpu(dtype):
    """Turn autocast on, which `torch.autocast` refuses to do without a GPU."""
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
        PSMNetConfig(
            max_disparity=32, width=0.25, hourglasses=1, normalisation="group", peak_reach=2
        ),
        *map(attentive, MECHANISMS),
    ],
    ids=["align_corners", "group norm", *MECHANISMS],
)
def test_a_forward_on_a_gpu_stays_there(config, dtype, monkeypatch):
    """Nothing is copied to or from the GPU; fake tensors raise an error if a value is read."""
    monkeypatch.delenv("EA_PSMNET_TRITON", raising=False)
    monkeypatch.setattr("ea_psmnet.models.deploy._is_on_cpu", lambda _: False)
    model = arrange_for_inference(build_model(config), dtype)
    with FakeTensorMode(), torch.inference_mode(), autocast_on_a_gpu(dtype):
        pretend(model)
        left, right = (images((32, 64)) for _ in range(2))
        with Devices() as devices:
            (disparity,) = model(left, right).disparities
    assert disparity.shape == (1, 32, 64)
    assert devices.seen == {"cuda"}
