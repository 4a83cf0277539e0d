import torch

import hubconf
from ea_psmnet.models.psmnet import PSMNet


def test_every_entry_gives_a_network():
    for entry in (hubconf.psmnet, hubconf.ea_psmnet, lambda: hubconf.ea_psmnet_small(False)):
        assert isinstance(entry(), PSMNet)


def test_the_bundled_weights_load():
    model = hubconf.ea_psmnet_small()
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())
