"""A run small enough to be taken many times."""

import numpy as np
import pytest
from training.tiny import TINY, one_block, write_pairs

from ea_psmnet.models import config as config_module
from ea_psmnet.models import features
from ea_psmnet.training import logs, summary
from ea_psmnet.training.config import TrainingConfig


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(config_module.PRESETS, "tiny", TINY)
    return TINY


@pytest.fixture
def deep_features():
    """Asked for by tests that need the network as it is; all others do with fewer layers."""


@pytest.fixture(autouse=True)
def shallow_features(request, monkeypatch):
    if "deep_features" not in request.fixturenames:
        monkeypatch.setattr(features, "_stage", one_block)


@pytest.fixture
def pictures():
    """Asked for by tests that look at curves and sheets; all others do without, in less time."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        blank = np.zeros((1, 1, 3), np.uint8)
        monkeypatch.setattr(summary, "write_curves", lambda *_: None)
        monkeypatch.setattr(logs, "_sheet", lambda *_: blank)


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs")


@pytest.fixture
def config(pairs, tmp_path):
    return TrainingConfig(
        out=tmp_path / "run",
        data="folder",
        root=pairs,
        preset="tiny",
        max_disparity=16,
        crop=(32, 64),
        batch=2,
        micro_batch=2,
        steps=6,
        save_every=2,
        precision="fp32",
        device="cpu",
        workers=0,
        memory_check=False,
    )
