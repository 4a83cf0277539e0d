"""What every attention module of a network costs at an image size, in closed form."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ea_psmnet.attention import closed_form
from ea_psmnet.attention.base import Resources
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import SIZE_MULTIPLE
from ea_psmnet.reports.resource_cases import check_name
from ea_psmnet.reports.resources import DTYPES, decimal
from ea_psmnet.tables import markdown_table

__all__ = ["NetworkReport", "Site", "network_markdown", "network_report", "site_volume"]

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
