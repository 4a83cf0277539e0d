"""Configuration of networks, which does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ea_psmnet.records import read_record
from ea_psmnet.tables import check_choice, is_whole, whole_number

Aggregation = Literal["hourglass", "basic"]
Features = Literal["psmnet", "efficientnet-lite0"]
Normalisation = Literal["batch", "group"]

SCALE = 4
"""Image pixels of a cell of the cost volume, along rows, columns and disparities."""

_SITE_SCALES = {"volume": 4, "encoder": 8, "bottleneck": 16, "decoder": 8, "output": 4}
"""Image pixels of a position of an attention site, along rows, columns and disparities."""

HOURGLASS_SITES = ("encoder", "bottleneck", "decoder", "output")
"""Attention sites of an hourglass: at 1/8 before and after the bottleneck (1/16), and at 1/4."""

SITES = ("volume", *(f"hourglass{i}.{site}" for i in (1, 2, 3) for site in HOURGLASS_SITES))
"""All sites of attention modules; `volume` is after the residual blocks at 1/4."""

_OPTIONAL = ("hourglass_channels", "residuals")
_STRIDE = 4 * SCALE
_HOURGLASSES = 3
_MOST_WIDTH, _MOST_DISPARITIES, _MOST_CHANNELS = 8, 4096, 1024


@dataclass(frozen=True)
class PSMNetConfig:
    """A network of four stages: features, cost volume, aggregation and disparity head.

    The defaults describe PSMNet (Chang and Chen, CVPR 2018).

    Raises:
        ValueError: A value is out of range; the message states which, and the range.
    """

    aggregation: Aggregation = "hourglass"
    """Stacked hourglasses, or `basic`: residual blocks only."""
    max_disparity: int = 192
    """D: disparities 0 to D - 1 pixels are searched; a multiple of 16, at most 4096."""
    width: float = 1.0
    """Factor of the published numbers of channels, at most 8; 32 * width is a multiple of 4."""
    attention: str = "none"
    """Attention mechanism: none, or a key of `attention.MECHANISMS`."""
    attention_sites: tuple[str, ...] = ()
    """Where attention is applied; `encoder` stands for that site in every hourglass."""
    attention_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of the mechanism, such as key_channels, heads or normalisation."""
    align_corners: bool = False
    """Whether upsampling aligns corners; weights trained with torch 0.4 need true."""
    peak_reach: int = 0
    """Levels of 4 pixels on either side of the likeliest over which the expectation is taken in
    evaluation; 0 for all, as published, or the likeliest alone if `head_options` say so. Learned
    heads also combine only cells this near."""
    normalisation: Normalisation = "batch"
    """Normalisation after convolutions: batch, as published, or group."""
    features: Features = "psmnet"
    """Feature network: PSMNet's, or EfficientNet-Lite0 up to 1/16, fused to 1/4."""
    volume: str = "concat"
    """Cost volume: concat, as published, or another key of `volume.VOLUMES`."""
    volume_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of the cost volume, such as groups."""
    hourglasses: int = _HOURGLASSES
    """Number of stacked hourglasses, 1 to 3."""
    hourglass_channels: int | None = None
    """Channels inside the hourglasses, 1 to 1024; None for twice those outside, as published."""
    residuals: int | None = None
    """Residual blocks before hourglasses, 0 to 8; None for 1, or 4 without hourglasses, as
    published."""
    excitation: bool = False
    """Whether image features scale the channels of the hourglasses (CoEx)."""
    head: str = "trilinear"
    """Disparity head: trilinear, as published, or another key of `head.HEADS`."""
    head_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of the disparity head, such as top_k."""

    def __post_init__(self) -> None:
        check_choice("aggregation", self.aggregation, get_args(Aggregation))
        check_choice("normalisation", self.normalisation, get_args(Normalisation))
        for name in ("max_disparity", "peak_reach", "hourglasses", *_OPTIONAL):
            if (value := getattr(self, name)) is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, whole_number(name.replace("_", " "), value))
        if self.width > _MOST_WIDTH or self.max_disparity > _MOST_DISPARITIES:
            raise ValueError(
                f"width {self.width} or {self.max_disparity} disparities are more than a network "
                f"can have: at most {_MOST_WIDTH} and {_MOST_DISPARITIES}"
            )
        if self.max_disparity < _STRIDE or self.max_disparity % _STRIDE:
            nearest = max(_STRIDE, -(-self.max_disparity // _STRIDE) * _STRIDE)
            raise ValueError(
                f"max disparity must be a multiple of {_STRIDE}, not {self.max_disparity}: "
                f"try {nearest}"
            )
        if self.peak_reach < 0:
            raise ValueError(f"peak reach must be 0 or more levels, not {self.peak_reach}")
        if self.hourglasses not in range(1, _HOURGLASSES + 1):
            raise ValueError(f"hourglasses must be 1 to {_HOURGLASSES}, not {self.hourglasses}")
        if self.hourglass_channels not in (None, *range(1, _MOST_CHANNELS + 1)):
            raise ValueError(
                f"hourglass channels must be 1 to {_MOST_CHANNELS}, not {self.hourglass_channels}"
            )
        if self.residuals is not None and self.residuals not in range(9):
            raise ValueError(f"residuals must be 0 to 8 blocks, not {self.residuals}")
        check_choice("features", self.features, get_args(Features))
        if self.excitation and self.features == "psmnet":
            raise ValueError("excitation needs features at 1/8 and 1/16, which psmnet lacks")
        if self.width <= 0 or (32 * self.width) % 4:
            raise ValueError(f"width must make 32 * width a multiple of 4, not {self.width}")
        self._check_sites()
        for options in ("attention_options", "volume_options", "head_options"):
            object.__setattr__(self, options, _plain(getattr(self, options)))
        if (self.attention == "none") != (not self.attention_sites):
            raise ValueError(
                f"attention '{self.attention}' with sites {list(self.attention_sites)}: "
                "a mechanism needs at least one site, and a site a mechanism"
            )
        if self.aggregation == "basic" and set(self.attention_sites) - {"volume"}:
            raise ValueError("the basic network has no hourglass: its only site is 'volume'")

    def _check_sites(self) -> None:
        given = self.attention_sites
        given = (given,) if isinstance(given, str) else given
        bare = {site for site in given if site in HOURGLASS_SITES}
        sites = _expand_sites(given)
        present = {site for site in sites if _hourglass(site) <= self.hourglasses}
        surplus = {s for s in sites if s not in present and s.rpartition(".")[2] not in bare}
        if surplus:
            count = f"{self.hourglasses} hourglass{'es' * (self.hourglasses > 1)}"
            raise ValueError(f"attention site '{min(surplus)}' needs more than {count}")
        kept = tuple(site for site in sites if site in present)
        object.__setattr__(self, "attention_sites", kept)

    @property
    def levels(self) -> int:
        """K, the number of disparities of the cost volume."""
        return self.max_disparity // SCALE

    @property
    def residual_blocks(self) -> int:
        """Number of residual blocks before the hourglasses, or of all if there are none."""
        published = 1 if self.aggregation == "hourglass" else 4
        return published if self.residuals is None else self.residuals

    @property
    def inner_channels(self) -> int:
        """Channels inside the hourglasses."""
        return self.hourglass_channels or self.channels(64)

    def site(self, name: str) -> tuple[int, int]:
        """Scale of an attention site, in image pixels of a position, and channels of its volume."""
        scale = _SITE_SCALES[name.rpartition(".")[2]]
        return scale, self.channels(32) if scale == SCALE else self.inner_channels

    def channels(self, published: int) -> int:
        """A published number of channels, scaled to this width."""
        return round(published * self.width)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return asdict(self) | {"attention_sites": list(self.attention_sites)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PSMNetConfig:
        """Make a configuration from the values of `to_dict`.

        Raises:
            ValueError: Unknown field, or a value out of range.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model setting '{unknown[0]}': made by a newer version?")
        return cls(**values)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with all kinds of whole numbers converted to int."""
    return {name: int(value) if is_whole(value) else value for name, value in options.items()}


def _hourglass(site: str) -> int:
    """Number of the hourglass of a site; 0 for `volume`."""
    return 0 if site == "volume" else int(site.removeprefix("hourglass").partition(".")[0])


def _expand_sites(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Replace bare names by those of every hourglass; in network order, without repetitions."""
    wanted: set[str] = set()
    for site in sites:
        expanded = (
            [f"hourglass{i}.{site}" for i in (1, 2, 3)] if site in HOURGLASS_SITES else [site]
        )
        if not set(expanded) <= set(SITES):
            choices = ", ".join([*HOURGLASS_SITES, *SITES])
            raise ValueError(f"unknown attention site '{site}': choose from {choices}")
        wanted.update(expanded)
    return tuple(site for site in SITES if site in wanted)


_LIGHT = PSMNetConfig(
    features="efficientnet-lite0",
    volume="groupwise",
    width=0.25,
    hourglasses=2,
    residuals=0,
    excitation=True,
    head="learned",
    head_options={"top_k": 2},
    peak_reach=1,
)


_PUBLISHED = {
    "psmnet": PSMNetConfig(),
    "ea-psmnet": PSMNetConfig(attention="efficient", attention_sites=("encoder",)),
    "nonlocal-psmnet": PSMNetConfig(attention="dot_product", attention_sites=("encoder",)),
}

PRESETS: dict[str, PSMNetConfig] = {
    **_PUBLISHED,
    **{f"{name}-small": replace(config, width=0.5) for name, config in _PUBLISHED.items()},
    "light": _LIGHT,
    "ea-light": replace(_LIGHT, attention="efficient", attention_sites=("encoder",)),
    "nonlocal-light": replace(_LIGHT, attention="dot_product", attention_sites=("encoder",)),
}
"""Networks by name. Both kinds of attention use the same sites, so that they are comparable."""


def preset(name: str) -> PSMNetConfig:
    """Get a preset by name.

    Raises:
        ValueError: Unknown preset; the message lists the choices.
    """
    check_choice("preset", name, PRESETS)
    return PRESETS[name]


def read_config(path: Path) -> PSMNetConfig:
    """Read a configuration from a JSON file of the values of `to_dict`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, or does not describe a network.
    """
    return read_record(path, PSMNetConfig, remedy="the file does not describe a network")
