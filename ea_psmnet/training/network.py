"""The network of a run: its structure, initial weights and averaged weights."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.efficientnet import EfficientNetFeatures
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.normalisation import freeze_statistics, synchronise
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_into, load_state
from ea_psmnet.training.config import NetworkOptions, TrainingConfig


def network_config(config: TrainingConfig) -> PSMNetConfig:
    """Structure of the network that a run's configuration describes.

    Raises:
        ValueError: The preset is unknown, or the structure is impossible or has nothing that a part
            of the loss is for.
        FileNotFoundError: The network file or the initial weights, whose corner alignment is
            adopted, are missing.
    """
    base = config.base_network()
    _refuse_replaced(config, base)
    inherited = config.init is not None and load_state(config.init)[0].align_corners
    structure = replace(
        base,
        max_disparity=config.max_disparity,
        align_corners=base.align_corners or inherited,
        normalisation="group" if config.normalisation == "group" else "batch",
    )
    if config.attention_sites:
        structure = replace(structure, attention_sites=config.attention_sites)
    if config.likelihood and structure.head != "learned":
        raise ValueError(
            f"--likelihood is for networks that upsample from cells: this one's head is "
            f"{structure.head}; take --preset ea-light, or leave it out"
        )
    return structure


def _refuse_replaced(config: TrainingConfig, base: PSMNetConfig) -> None:
    """Raise a ValueError if a default would replace what the file of the network says."""
    for name in ("max_disparity", "normalisation"):
        said, taken = getattr(base, name), getattr(config, name)
        if config.network is not None and said != taken == getattr(NetworkOptions, name):
            option = name.replace("_", "-")
            raise ValueError(
                f"{config.network} has {name} {said}, and --{option} is {taken}: give --{option} "
                f"{said}, or change the file"
            )


def initial_network(config: TrainingConfig, structure: PSMNetConfig) -> PSMNet:
    """Build a network with the initial weights of a run.

    Raises:
        ValueError: The initial weights do not fit.
        ModuleNotFoundError: The package with the ImageNet weights is missing.
    """
    network = build_model(structure)
    if config.init is not None:
        load_into(network, config.init)
    elif config.imagenet and isinstance(network.features, EfficientNetFeatures):
        network.features.load_imagenet()
    to_channels_last(network)
    network.checkpointing = config.checkpointing
    return network


def prepare_for_training(
    network: PSMNet, config: TrainingConfig, accelerator: Accelerator
) -> nn.Module:
    """Prepare a network for the device and the processes of a run.

    Returns:
        The network as it is called: compiled, and distributed over processes.
    """
    # Weights of 1x1 convolutions have both layouts at once: the warning does not matter.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    network.train()
    if config.normalisation == "frozen":
        freeze_statistics(network)
    if config.normalisation == "sync":
        synchronise(network, accelerator.device)
    network.to(accelerator.device)
    # All crops have one size, and hand-written backward passes do not trace with dynamic shapes.
    model = torch.compile(network, dynamic=False) if config.compile else network
    return accelerator.prepare(model)


# Averaged weights ---------------------------------------------------------------------------------


class WeightAverage:
    """An exponential moving average of a network's parameters and batch statistics.

    The decay of step n is at most (1 + n) / (10 + n), so that the initial weights are forgotten
    quickly (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: t.clone() for name, t in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the weights after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, current in network.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """State for `load_state_dict`."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Restore a saved state; tensors keep their devices."""
        self.updates = int(state["updates"])
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])
