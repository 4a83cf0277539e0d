"""Averages of the weights over the steps of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """An exponential moving average of a network's parameters and batch statistics.

    The decay rises to its value as (1 + n) / (10 + n) over the first steps, so that the random
    start is forgotten (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: t.clone() for name, t in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, current in network.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """What `load_state_dict` takes."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state, keeping devices."""
        self.updates = int(state["updates"])
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])
