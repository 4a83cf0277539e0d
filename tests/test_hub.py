import pytest
import torch

import hubconf
from ea_psmnet.models.psmnet import PSMNet


def test_every_entry_gives_a_network():
    for entry in (hubconf.light, hubconf.psmnet, hubconf.ea_psmnet):
        assert isinstance(entry(), PSMNet)
    for entry in (hubconf.ea_light, hubconf.ea_psmnet_small):
        assert isinstance(entry(pretrained=False), PSMNet)


@pytest.mark.parametrize("entry", [hubconf.ea_light, hubconf.ea_psmnet_small])
def test_the_bundled_weights_load(entry):
    model = entry()
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())
