"""The stacks of layers beside what the papers state of the networks that they resemble."""

import pytest
import torch
from published_shapes import CoExLike, LightStereoLike
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize(
    ("network", "parameters", "macs"),
    [(CoExLike, 2.7e6, 53e9), (LightStereoLike, 3.4e6, 23e9)],
)
def test_parameters_and_operations_are_like_the_published(network, parameters, macs):
    model = network().eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.3)
    with torch.device("meta"):
        shape, image = network().eval(), torch.empty(1, 3, 544, 960)
    with FlopCounterMode(display=False) as counter:
        assert shape(image, image).shape == (1, 544, 960)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.3)
    small = torch.rand(2, 3, 64, 96)
    assert model(small, small).shape == (2, 64, 96)
