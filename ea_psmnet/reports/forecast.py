"""What a network should cost, before it runs: parameters, operations and bytes of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ea_psmnet.models.config import Aggregation, PSMNetConfig
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PlainPSMNet, build_model
from ea_psmnet.reports.network_resources import Site, network_report

__all__ = ["Forecast", "count_parameters", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """Figures of a forward of the whole batch that follow from the network's shape alone."""

    operations: int
    """Of the published convolutions and of attention, two for a multiply-add."""
    attention_bytes: int
    """The closed form: of the largest module in prediction, of all together in training."""
    sites: dict[str, SiteForecast]
    """Of each attention module."""


@dataclass(frozen=True)
class SiteForecast:
    """The closed form of one attention module."""

    bytes: int
    map_bytes: int
    """Of `bytes`, the weights between all pairs of positions: one tensor in the naive form."""


def count_parameters(config: PSMNetConfig) -> int:
    """Trainable numbers of a network; raises a ValueError where it cannot be built."""
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def forecast(
    config: PSMNetConfig, shape: tuple[int, int, int], *, training: bool, dtype: str = "float32"
) -> Forecast:
    """Operations and attention's memory for a batch.

    Args:
        config: the network.
        shape: batch, height and width; the sides are padded to multiples of 16, as for prediction.
        training: attention modules keep their memory until the backward.
        dtype: of the volumes, a key of `DTYPES`.
    """
    batch, *sides = shape
    height, width = (math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in sides)
    sites: list[Site] = []
    if config.attention_sites:
        sites = network_report(config, (height, width), batch=batch, dtype=dtype).sites
    together = sum if training else max
    bare = (config.aggregation, config.max_disparity, config.width)
    convolutions = batch * _convolutions(*bare, (height, width))
    return Forecast(
        operations=convolutions + sum(site.operations for site in sites),
        attention_bytes=together([site.bytes for site in sites] or [0]),
        sites={site.name: SiteForecast(site.bytes, site.map_bytes) for site in sites},
    )


@cache
def _convolutions(
    aggregation: Aggregation, max_disparity: int, width: float, size: tuple[int, int]
) -> int:
    """Operations of a network without attention on one pair, counted on tensors without data.

    In the published form, so that figures compare with the literature's: factored convolutions
    and the like need fewer.
    """
    config = PSMNetConfig(aggregation=aggregation, max_disparity=max_disparity, width=width)
    network = PlainPSMNet(build_model(config).eval())
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        image = torch.empty(1, 3, *size)
        network(image, image)
    return counter.get_total_flops()
