"""Training through torch.compile."""

from dataclasses import replace
from functools import partial

import pytest
import safetensors.torch
import torch

from ea_psmnet.training.loop import train


@pytest.mark.slow
def test_a_compiled_run_ends_where_an_eager_one_does(config, monkeypatch):
    """Traced forward and backward, without code generation, which needs a C++ compiler."""
    config = replace(config, batch=2, steps=2, precision="fp32")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    weights = []
    for name in ("eager", "compiled"):
        train(replace(config, out=config.out / name, compile=name == "compiled"))
        weights.append(safetensors.torch.load_file(config.out / name / "model.safetensors"))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=1e-3)
