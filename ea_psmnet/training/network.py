"""The network of a run: its structure, its first weights, and the form in which it trains."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.efficientnet import EfficientNetFeatures
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.normalisation import freeze_statistics, synchronise
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_into, load_state
from ea_psmnet.training.config import TrainingConfig

__all__ = ["initial_network", "network_config", "prepare_for_training"]


def network_config(config: TrainingConfig) -> PSMNetConfig:
    """The structure that a run's settings describe.

    Raises:
        ValueError: an unknown preset or an impossible structure.
        FileNotFoundError: no network file, or no initial weights; their alignment is taken over.
    """
    structure = replace(
        config.base_network(),
        max_disparity=config.max_disparity,
        align_corners=_align_corners(config),
        normalisation="group" if config.normalisation == "group" else "batch",
    )
    if config.attention_sites:
        structure = replace(structure, attention_sites=config.attention_sites)
    return structure


def initial_network(config: TrainingConfig, structure: PSMNetConfig) -> PSMNet:
    """A network with the weights a run starts from.

    Raises:
        ValueError: the initial weights do not fit.
        ModuleNotFoundError: ImageNet's weights are wanted and their package is missing.
    """
    network = build_model(structure)
    if config.init is not None:
        load_into(network, config.init)
    elif config.imagenet and isinstance(network.features, EfficientNetFeatures):
        network.features.load_imagenet()
    if config.channels_last:
        to_channels_last(network)
    network.checkpointing = config.checkpointing
    return network


def prepare_for_training(
    network: PSMNet, config: TrainingConfig, accelerator: Accelerator
) -> nn.Module:
    """Set a network up for the device and processes of a run.

    Returns:
        The form to call: compiled, and spread over processes.
    """
    # A 1x1 convolution's weights are in both layouts at once; which is named makes no difference.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    network.train()
    if config.normalisation == "frozen":
        freeze_statistics(network)
    if config.normalisation == "sync":
        synchronise(network, accelerator.device)
    network.to(accelerator.device)
    # Crops are of one size, and hand-written backwards do not trace with shapes that vary.
    model = torch.compile(network, dynamic=False) if config.compile else network
    return accelerator.prepare(model)


def _align_corners(config: TrainingConfig) -> bool:
    if config.align_corners is not None:
        return config.align_corners
    return config.init is not None and load_state(config.init)[0].align_corners
