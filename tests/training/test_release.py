import hashlib

import torch
from training.tiny import TINY

from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model, save_model
from ea_psmnet.training.release import release


def test_released_weights_are_the_trained_ones_in_half_precision(tmp_path):
    network = build_model(TINY)
    trained, shipped = tmp_path / "trained.safetensors", tmp_path / "shipped.safetensors"
    save_model(trained, network)
    digest = release(trained, shipped)
    assert digest == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert shipped.stat().st_size < 0.6 * trained.stat().st_size
    loaded = load_model(shipped).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)
