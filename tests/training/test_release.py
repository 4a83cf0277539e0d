import hashlib
from dataclasses import replace

import pytest
import torch
from training.tiny import TINY

from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model, save_model
from ea_psmnet.training.release import release


def test_released_weights_are_the_trained_ones_in_half_precision(tmp_path):
    network = build_model(TINY)
    trained, shipped = tmp_path / "trained.safetensors", tmp_path / "shipped.safetensors"
    save_model(trained, network)
    digest = release(trained, shipped, peak_reach=2)
    assert digest == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert shipped.stat().st_size < 0.6 * trained.stat().st_size
    assert load_model(shipped).config.peak_reach == 2
    assert load_model(shipped, peak_reach=0).config == load_model(trained).config
    loaded = load_model(shipped).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_released_weights_may_be_the_mean_of_two_runs(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("trained", "start", "shipped")]
    networks = [build_model(TINY) for _ in range(2)]
    for path, network in zip(paths, networks, strict=False):
        save_model(path, network)
    release(paths[0], paths[2], other=paths[1], share=0.25)
    found = load_model(paths[2]).state_dict()
    (ours, start) = (network.state_dict() for network in networks)
    for name in ("features.stem.0.0.weight", "aggregation.stem.0.1.running_var"):
        expected = 0.75 * ours[name] + 0.25 * start[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def test_the_mean_of_different_networks_is_refused(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("trained", "start", "shipped")]
    for path, disparities in zip(paths, (48, 96), strict=False):
        save_model(path, build_model(replace(TINY, max_disparity=disparities)))
    with pytest.raises(ValueError, match="must be equal"):
        release(paths[0], paths[2], other=paths[1])
    assert not paths[2].exists()
