"""Fixtures for the tests of inference."""

import numpy as np
import pytest

from ea_psmnet import StereoMatcher


@pytest.fixture(scope="module")
def matcher():
    """The default weights in float32, with 48 disparities."""
    return StereoMatcher.load("ea-light", max_disparity=48, device="cpu", precision="exact")


@pytest.fixture
def left():
    """An image of noise, (24, 40, 3)."""
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


@pytest.fixture
def disparity():
    """A ramp from 1 to 30 pixels, (24, 40)."""
    return np.linspace(1, 30, 24 * 40, dtype=np.float32).reshape(24, 40)
