"""Fixtures for the tests of the commands."""

import pytest
import torch

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.models.weights import save_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Untrained weights of a network with 32 disparities."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, build_model(PSMNetConfig(max_disparity=32, width=0.25)))
    return path
