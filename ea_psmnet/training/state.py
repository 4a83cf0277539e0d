"""What a run goes on from: found, put back and saved, and the weights to use beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from ea_psmnet.files import remove_leftovers
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.models.weights import save_model
from ea_psmnet.training.checkpoint import load_newest, refusing_strangers, save_checkpoint
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.ema import WeightAverage
from ea_psmnet.training.processes import from_main
from ea_psmnet.training.randomness import random_state, set_random_state

__all__ = ["RunState"]


class RunState:
    """A run's network and what belongs to it in a checkpoint.

    Args:
        config: the run.
        accelerator: knows device and processes.
        network: what is trained, on its device.
        parts: all else that has a state, by its name in a checkpoint.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        network: PSMNet,
        parts: Mapping[str, Any],
    ) -> None:
        self.config, self.accelerator, self.network = config, accelerator, network
        self.average = WeightAverage(network, config.ema) if config.ema else None
        self.start = 0
        """Steps taken before."""
        self.best = math.inf
        """The lowest EPE of a validation."""
        self.validation_due = False
        """Whether the weights are to be validated before the next step."""
        self._parts = dict(parts) | ({"average": self.average} if self.average else {})
        self._checkpoints = config.out / "checkpoints"
        self._weights = config.out / "model.safetensors"

    def resume(self, steps: int) -> None:
        """Go on from the newest checkpoint, if there is one.

        Args:
            steps: of the whole run.

        Raises:
            ValueError: it is of another run.
        """
        state, lacking = None, False
        if self.accelerator.is_main_process:
            remove_leftovers(self.config.out)
            remove_leftovers(self._checkpoints)
            state, lacking = load_newest(self._checkpoints), not self._weights.is_file()
        state, lacking = from_main((state, lacking))
        if state is None:
            return
        self.start = state["step"]
        with refusing_strangers(self._checkpoints, self.start):
            self._put_back(state, steps)
        if lacking:  # somebody has moved them, and a finished run would end without
            self.save_weights()

    def save(self, done: int) -> None:
        """Write weights and checkpoint; the latter last, as a run goes on from there."""
        states = gather_object([random_state()])
        self.save_weights()
        if not self.accelerator.is_main_process:
            return
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        own = {"model": self.network.state_dict(), "best": self.best, "random": states}
        own["validation_due"] = self.validation_due
        save_checkpoint(self._checkpoints, done, own | parts, self.config.keep)

    def save_weights(self) -> None:
        """Write the weights to use alone."""
        network = self.result()
        if self.accelerator.is_main_process:
            save_model(self._weights, network)

    def result(self) -> PSMNet:
        """A network of its own with the weights to use: averaged, if that was asked for."""
        with torch.random.fork_rng(devices=[]):  # what it starts from is thrown away
            network = PSMNet(self.network.config).to(self.accelerator.device)
        state = self.average.weights if self.average else self.network.state_dict()
        network.load_state_dict(state)
        if self.accelerator.num_processes > 1:
            for buffer in network.buffers():  # batch statistics are each process's own
                broadcast(buffer)
        return network.eval()

    def _put_back(self, state: dict[str, Any], steps: int) -> None:
        if self.start > steps:
            raise ValueError(f"the run has {steps} steps")
        self.network.load_state_dict(state["model"])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.best = float(state["best"])
        due = state.get("validation_due", False)  # older checkpoints do not tell
        self.validation_due = bool(due and self.config.validate_every)
        own = self.accelerator.process_index
        if own < len(state["random"]):
            set_random_state(state["random"][own])
