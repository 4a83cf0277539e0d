"""Networks by a short text, as `efficient@bottleneck,heads=2`, and what they should cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ea_psmnet.attention import closed_form
from ea_psmnet.attention.resources import Resources
from ea_psmnet.experiments.resources import DTYPES, check_name, decimal
from ea_psmnet.models.config import Aggregation, PSMNetConfig
from ea_psmnet.models.plain import PlainPSMNet
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, build_model
from ea_psmnet.ops.choices import check_choice
from ea_psmnet.tables import markdown_table

__all__ = [
    "VARIANTS",
    "Forecast",
    "NetworkReport",
    "Site",
    "Variant",
    "at_sites",
    "count_parameters",
    "forecast",
    "network_markdown",
    "network_report",
    "parse_variant",
    "site_volume",
    "slug",
]

_PLACES = {
    "volume": (4, 32),
    "encoder": (8, 64),
    "bottleneck": (16, 64),
    "decoder": (8, 64),
    "output": (4, 32),
}
"""Of every place for attention: the image's sides over the volume's, channels at width 1."""


@dataclass(frozen=True)
class Site:
    """One attention module; costs are of the whole batch."""

    name: str
    size: tuple[int, int, int]
    """(D, H, W) of its volume."""
    channels: int
    floats: int
    bytes: int
    map_bytes: int
    """Of `bytes`, those of the weights between all pairs of positions."""
    operations: int

    @property
    def positions(self) -> int:
        """N of one sample."""
        return math.prod(self.size)


@dataclass(frozen=True)
class NetworkReport:
    """All attention modules of a network, in the order in which it passes them."""

    attention: str
    size: tuple[int, int]
    """Height and width, padded to what the network takes."""
    max_disparity: int
    batch: int
    dtype: str
    sites: list[Site]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        sites = [asdict(site) | {"positions": site.positions} for site in self.sites]
        return asdict(self) | {"sites": sites}


def network_report(
    config: PSMNetConfig, size: tuple[int, int], *, batch: int = 1, dtype: str = "float32"
) -> NetworkReport:
    """Closed forms of a network's attention modules.

    Args:
        config: the network.
        size: height and width of the images; padded to multiples of 16, as for prediction.
        batch: pairs at once.
        dtype: a key of `DTYPES`, of the volumes.

    Raises:
        ValueError: the network has no attention, the type is unknown, or a number is below one.
    """
    check_name("dtype", dtype, DTYPES)
    if min(*size, batch) < 1:
        raise ValueError(f"size {size[0]} x {size[1]} and batch {batch} must be 1 or more")
    if not config.attention_sites:
        raise ValueError("this network has no attention: choose a preset that has, as ea-psmnet")
    height, width = (math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    sites = [
        _site(config, name, (height, width), batch, DTYPES[dtype].itemsize)
        for name in config.attention_sites
    ]
    return NetworkReport(
        config.attention, (height, width), config.max_disparity, batch, dtype, sites
    )


def site_volume(
    config: PSMNetConfig, site: str, size: tuple[int, int]
) -> tuple[tuple[int, int, int], int]:
    """(D, H, W) and channels of the volume at a site, for images with sides multiples of 16."""
    scale, channels = _PLACES[site.rpartition(".")[2]]
    height, width = size
    return (config.max_disparity // scale, height // scale, width // scale), config.channels(
        channels
    )


def _site(
    config: PSMNetConfig, name: str, size: tuple[int, int], batch: int, itemsize: int
) -> Site:
    volume, channels = site_volume(config, name, size)
    cost = closed_form(config.attention, volume, channels, **config.attention_options)
    return Site(
        name=name,
        size=volume,
        channels=channels,
        floats=batch * cost.floats,
        bytes=batch * cost.bytes(itemsize),
        map_bytes=batch * Resources(cost.map_floats, 0, 0, cost.map_floats).bytes(itemsize),
        operations=batch * cost.operations,
    )


def network_markdown(report: NetworkReport) -> str:
    """A table with a row a site, and their sum."""
    height, width = report.size
    title = (
        f"Attention '{report.attention}' at {height} x {width}, {report.max_disparity} "
        f"disparities, batch {report.batch}, {report.dtype}:"
    )
    rows = [_cells(site) for site in report.sites]
    total = {
        "memory": decimal(sum(site.bytes for site in report.sites), "B"),
        "of it n x n": decimal(sum(site.map_bytes for site in report.sites), "B"),
        "operations": decimal(sum(site.operations for site in report.sites)),
    }
    table = markdown_table([*rows, dict.fromkeys(rows[0], "") | {"site": "all"} | total])
    note = (
        "Closed forms, in Table 1's counting. In training all sites are held at once; without "
        "gradients one after the other."
    )
    if any(site.map_bytes for site in report.sites):
        note += (
            " The n x n map is float32 in every type, and while a softmax writes it, its logits "
            "are a second one."
        )
    return "\n\n".join([title, table, f"- {note}"])


def _cells(site: Site) -> dict[str, object]:
    return {
        "site": site.name,
        "volume": "x".join(map(str, site.size)),
        "n": f"{site.positions:,}",
        "C": str(site.channels),
        "floats": decimal(site.floats),
        "memory": decimal(site.bytes, "B"),
        "of it n x n": decimal(site.map_bytes, "B"),
        "operations": decimal(site.operations),
    }


class Variant(NamedTuple):
    """A mechanism of `build_attention` and the options that make it this variant."""

    attention: str
    options: Mapping[str, Any]


VARIANTS: dict[str, Variant] = {
    "baseline": Variant("none", {}),
    "efficient": Variant("efficient", {}),
    "non-local": Variant("dot_product", {}),
    "non-local-sdpa": Variant("dot_product", {"backend": "sdpa"}),
    "focused": Variant("focused_linear", {}),
    "external": Variant("external", {}),
    "hydra": Variant("hydra", {}),
}
"""By name. `non-local` is the textbook form, which stores all n x n weights; `-sdpa` is the same
function through PyTorch's `scaled_dot_product_attention`, with memory linear in n."""

_PATTERN = re.compile(r"(?P<name>[\w-]+)(@(?P<sites>[\w.+]+))?(?P<options>(,\w+=[^,=]+)*)")


def parse_variant(
    text: str, *, sites: str = "encoder", base: PSMNetConfig | None = None, **changes: Any
) -> PSMNetConfig:
    """The network that `NAME[@SITE[+SITE...]][,OPTION=VALUE...]` stands for.

    Args:
        text: a name of `VARIANTS`, places of `SITES` or of all hourglasses, options of its class.
        sites: the places where the text names none.
        base: The network that attention joins; None for PSMNet.
        changes: Other fields of the network, as width or max_disparity.

    Raises:
        ValueError: no such text, name or place.

    Example:
        >>> parse_variant("efficient@volume,heads=2").attention_options
        {'heads': 2}
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"'{text}' is no variant: write it as efficient, efficient@bottleneck or "
            "efficient@volume+decoder,heads=2"
        )
    check_choice("variant", match["name"], list(VARIANTS))
    attention, options = VARIANTS[match["name"]]
    named = [option.split("=") for option in match["options"].split(",")[1:]]
    if attention == "none" and (match["sites"] or named):
        raise ValueError(f"'{text}': the baseline has no attention to place or to set options of")
    return replace(
        base or PSMNetConfig(),
        attention=attention,
        attention_sites=() if attention == "none" else tuple((match["sites"] or sites).split("+")),
        attention_options={**options, **{name: _value(value) for name, value in named}},
        **changes,
    )


def at_sites(texts: Sequence[str], sites: Sequence[str]) -> list[str]:
    """Each variant at each of several places; one that names its places stays as it is.

    Example:
        >>> at_sites(["baseline", "hydra", "efficient@volume"], ["encoder", "bottleneck"])
        ['baseline', 'hydra@encoder', 'hydra@bottleneck', 'efficient@volume']
    """
    placed = []
    for text in texts:
        name, comma, options = text.partition(",")
        fixed = "@" in name or name == "baseline"
        placed += [text] if fixed else [f"{name}@{site}{comma}{options}" for site in sites]
    return list(dict.fromkeys(placed))


def slug(text: str) -> str:
    """A variant's text as a file name; different texts give different names."""
    return text.replace(",", "--").replace("=", "-")


def _value(text: str) -> Any:
    """A number, true, false or null as JSON reads it, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


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
