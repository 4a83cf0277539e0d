"""Networks by a short text, such as `efficient@bottleneck,heads=2`, and their predicted cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ea_psmnet.attention import closed_form
from ea_psmnet.attention.base import Resources
from ea_psmnet.experiments.resources import DTYPES, decimal, operation_counter
from ea_psmnet.files import distinct_names
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PlainPSMNet, build_model
from ea_psmnet.models.weights import find_weights, load_state
from ea_psmnet.tables import check_choice, markdown_table

# Networks by name ---------------------------------------------------------------------------------


class Variant(NamedTuple):
    """A mechanism of `build_attention`, and its options."""

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
"""Variants by name. `non-local` is the textbook form, which stores all n x n weights; `-sdpa` is
the same function through PyTorch's `scaled_dot_product_attention`, with memory linear in n."""

_PATTERN = re.compile(r"(?P<name>[\w-]+)(@(?P<sites>[\w.+]+))?(?P<options>(,\w+=[^,=]+)*)")


def parse_variant(
    text: str, *, sites: str = "encoder", base: PSMNetConfig | None = None, **changes: Any
) -> PSMNetConfig:
    """Build the network that `NAME[@SITE[+SITE...]][,OPTION=VALUE...]` describes.

    Args:
        text: A key of `VARIANTS`, places of `SITES` or of all hourglasses, options of the class.
        sites: The places if the text names none.
        base: The network that attention is added to; None for PSMNet.
        changes: Other fields of the network, such as width or max_disparity.

    Raises:
        ValueError: The text is not a variant, or a name or place is unknown.

    Example:
        >>> parse_variant("efficient@volume,heads=2").attention_options
        {'heads': 2}
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"'{text}' is not a variant: examples are efficient, efficient@bottleneck or "
            "efficient@volume+decoder,heads=2"
        )
    check_choice("variant", match["name"], list(VARIANTS))
    attention, options = VARIANTS[match["name"]]
    named = [option.split("=") for option in match["options"].split(",")[1:]]
    if attention == "none" and (match["sites"] or named):
        raise ValueError(f"'{text}': the baseline has no attention, so no places or options")
    return replace(
        base or PSMNetConfig(),
        attention=attention,
        attention_sites=() if attention == "none" else tuple((match["sites"] or sites).split("+")),
        attention_options={**options, **{name: _value(value) for name, value in named}},
        **changes,
    )


def at_sites(texts: Sequence[str], sites: Sequence[str]) -> list[str]:
    """Place every variant at each of several sites; one that names its sites stays as it is.

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
    """Turn a variant's text into a file name; different texts give different names."""
    return text.replace(",", "--").replace("=", "-")


def _value(text: str) -> Any:
    """Read a number, true, false or null as JSON does; anything else is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


DEFAULT_VARIANTS = ("baseline", "efficient", "non-local")
"""The three networks of the paper."""


@dataclass(frozen=True)
class Network:
    """A network to compare: a column of the paper's Table 5."""

    label: str
    config: PSMNetConfig
    checkpoint: Path | None = None


def named_networks(
    variants: Sequence[str],
    presets: Sequence[str],
    checkpoints: Sequence[Path],
    *,
    sites: Sequence[str],
    width: float,
    max_disparity: int,
) -> list[Network]:
    """Return checkpoints, presets and variants, in this order; by default `DEFAULT_VARIANTS`.

    Raises:
        ValueError, FileNotFoundError: A name is unknown, a file is not a checkpoint, or two
            networks have the same label.
    """
    if not (variants or presets or checkpoints):
        variants = DEFAULT_VARIANTS
    checkpoints = [find_weights(path) for path in checkpoints]
    names = distinct_names([path.absolute().with_suffix("") for path in checkpoints])
    trained = [
        Network(name, replace(load_state(path)[0], max_disparity=max_disparity), path)
        for name, path in zip(names, checkpoints, strict=True)
    ]
    fresh = [
        Network(name, replace(preset(name), max_disparity=max_disparity)) for name in presets
    ] + [
        Network(text, parse_variant(text, width=width, max_disparity=max_disparity))
        for text in at_sites(variants, sites)
    ]
    networks = trained + fresh
    labels = [network.label for network in networks]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"two networks are called '{twice}': leave one out, or rename its file")
    return networks


# Closed forms of their attention ------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """An attention module; its costs are those of the whole batch."""

    name: str
    size: tuple[int, int, int]
    """Size (D, H, W) of its volume."""
    channels: int
    floats: int
    bytes: int
    map_bytes: int
    """Bytes of the weights between all pairs of positions; part of `bytes`."""
    operations: int

    @property
    def positions(self) -> int:
        """Number n of positions of one sample."""
        return math.prod(self.size)


@dataclass(frozen=True)
class NetworkReport:
    """All attention modules of a network, in its order."""

    attention: str
    size: tuple[int, int]
    """Height and width of the images, padded for the network."""
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
    """Compute the closed forms of a network's attention modules.

    Args:
        config: The network.
        size: Height and width of the images, which are padded to multiples of 16.
        batch: Number of pairs.
        dtype: Type of the volumes, a key of `DTYPES`.

    Raises:
        ValueError: The network has no attention, the type is unknown, or a number is below one.
    """
    check_choice("dtype", dtype, list(DTYPES))
    if min(*size, batch) < 1:
        raise ValueError(f"size {size[0]} x {size[1]} and batch {batch} must be 1 or more")
    if not config.attention_sites:
        raise ValueError("this network has no attention: choose a preset that has it, as ea-psmnet")
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
    """Return size (D, H, W) and channels of the volume at a site, for padded images."""
    scale, channels = config.site(site)
    height, width = size
    return (config.max_disparity // scale, height // scale, width // scale), channels


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
    """A table with a row for every site, and their sum."""
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
        "Closed forms, counted as in Table 1. In training all sites are held at once; without "
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


# The predicted cost of a network ------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """Costs of a forward pass of the whole batch, which follow from the network's shape alone."""

    operations: int
    """Operations of the published convolutions and of attention; two for a multiply-add."""
    attention_bytes: int
    """Closed form: of the largest module in prediction, of all modules in training."""
    sites: dict[str, SiteForecast]
    """Closed forms of the attention modules by site."""


@dataclass(frozen=True)
class SiteForecast:
    """The closed form of one attention module."""

    bytes: int
    map_bytes: int
    """Bytes of the weights between all pairs of positions, one tensor in the naive form; part of
    `bytes`."""


def count_parameters(config: PSMNetConfig) -> int:
    """Count the parameters of a network; raises a ValueError if it cannot be built."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def forecast(
    config: PSMNetConfig, shape: tuple[int, int, int], *, training: bool, dtype: str = "float32"
) -> Forecast:
    """Compute operations and the memory of attention for a batch.

    Args:
        config: The network.
        shape: Batch, height and width; the sides are padded to multiples of 16.
        training: Whether attention modules keep their memory until the backward pass.
        dtype: Type of the volumes, a key of `DTYPES`.
    """
    batch, *sides = shape
    height, width = (math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in sides)
    sites: list[Site] = []
    if config.attention_sites:
        sites = network_report(config, (height, width), batch=batch, dtype=dtype).sites
    together = sum if training else max
    bare = replace(config, attention="none", attention_sites=(), attention_options={})
    convolutions = batch * count_operations(bare, (height, width))
    return Forecast(
        operations=convolutions + sum(site.operations for site in sites),
        attention_bytes=together([site.bytes for site in sites] or [0]),
        sites={site.name: SiteForecast(site.bytes, site.map_bytes) for site in sites},
    )


def count_operations(config: PSMNetConfig, size: tuple[int, int]) -> int:
    """Count the operations of convolutions and matrix products on one pair; a multiply-add is two.

    The published form is counted, to be comparable with the literature; factored convolutions need
    fewer operations.

    Args:
        config: The network.
        size: Height and width of the images, multiples of 16.
    """
    return _count_operations(json.dumps(config.to_dict()), size)


@cache
def _count_operations(config: str, size: tuple[int, int]) -> int:
    """Count with tensors without data; the network is given as JSON because caches need hashes."""
    network = PlainPSMNet(build_model(PSMNetConfig.from_dict(json.loads(config))).eval())
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.inference_mode(), operation_counter() as counter:
        image = torch.empty(1, 3, *size)
        network(image, image)
    return counter.get_total_flops()
