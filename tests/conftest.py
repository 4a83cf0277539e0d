"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which is later


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pairs kept beside the repository, not part of it; the test is skipped without them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the repository")
    return folder


@pytest.fixture
def half_convolutions() -> None:
    """Skip where oneDNN has no bfloat16 convolutions, and torch's own round partial sums to it."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not convolve bfloat16 on this processor")
