import pytest
import torch
from torch import nn

from ea_psmnet.experiments.networks import parse_variant
from ea_psmnet.experiments.trial import ModuleTrace, attention_site
from ea_psmnet.models.config import SITES
from ea_psmnet.models.psmnet import build_model


class BrokenError(Exception):
    pass


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        raise BrokenError


def broken_forward(*_):
    raise BrokenError


@pytest.fixture
def network():
    torch.manual_seed(0)
    config = parse_variant("efficient@volume+encoder", width=0.125, max_disparity=16)
    return build_model(config).train()


IMAGES = torch.rand(2, 2, 3, 32, 48).unbind()


@pytest.mark.parametrize("name", ["features.fuse.2", "aggregation.hourglasses.1.attention.encoder"])
def test_a_failure_in_the_forward_names_the_innermost_module(network, name):
    trace = ModuleTrace(network)
    network.get_submodule(name).forward = broken_forward
    with pytest.raises(BrokenError):
        network(*IMAGES)
    assert trace.current == name


@pytest.mark.parametrize("name", ["aggregation.attention", "aggregation.hourglasses.2.refine1.1"])
def test_a_failure_in_the_backward_names_the_module_whose_gradient_came_in(network, name):
    module = network.get_submodule(name)
    original = module.forward
    # Its own result is made behind the break, so its backward begins, and then breaks.
    module.forward = lambda x: original(Breaks.apply(x)) * 1
    trace = ModuleTrace(network)
    outputs = network(*IMAGES)
    assert trace.current is None
    with pytest.raises(BrokenError):
        sum(output.sum() for output in outputs.disparities).backward()
    assert trace.current == name
    trace.clear()
    assert trace.current is None


def test_the_largest_input_is_kept():
    trace = ModuleTrace(network := nn.Conv2d(3, 1, 1))
    for shape in ((1, 3, 4, 6), (2, 3, 8, 4), (1, 3, 7, 9)):
        network(torch.zeros(shape))
    assert trace.largest == (2, 8, 4)


def test_every_site_is_recognised_by_its_modules_name():
    config = parse_variant("external@volume+encoder+bottleneck+decoder+output", width=0.125)
    names = [name for name, _ in build_model(config).named_modules()]
    assert {attention_site(name) for name in names} == {None, *SITES}
    assert attention_site("aggregation.hourglasses.2.attention.output.queries") == (
        "hourglass3.output"
    )
