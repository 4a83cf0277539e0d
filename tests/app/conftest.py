"""A server whose network is small and untrained."""

import pytest
import torch

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.app import engine as engine_module
from ea_psmnet.app.engine import Engine


@pytest.fixture(scope="session")
def matcher():
    torch.manual_seed(0)
    return StereoMatcher(build_model(PSMNetConfig(max_disparity=32, width=0.25)), device="cpu")


@pytest.fixture
def engine(matcher, monkeypatch):
    monkeypatch.setattr(engine_module.StereoMatcher, "load", lambda *_, **__: matcher)
    with Engine() as made:
        yield made
