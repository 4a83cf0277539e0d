"""What a network is made of, without importing torch: safe for command lines and headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from ea_psmnet.records import read_record

__all__ = [
    "HOURGLASS_SITES",
    "PRESETS",
    "SITES",
    "Aggregation",
    "Normalisation",
    "PSMNetConfig",
    "preset",
    "read_config",
]

Aggregation = Literal["hourglass", "basic"]
Normalisation = Literal["batch", "group"]

HOURGLASS_SITES = ("encoder", "bottleneck", "decoder", "output")
"""Places in one hourglass: 1/8 before and after the 1/16 bottleneck, and its 1/4 output."""

SITES = ("volume", *(f"hourglass{i}.{site}" for i in (1, 2, 3) for site in HOURGLASS_SITES))
"""Every place for an attention module; `volume` follows the residual blocks at 1/4."""

_STRIDE = 16
_MOST_WIDTH, _MOST_DISPARITIES = 8, 4096


@dataclass(frozen=True)
class PSMNetConfig:
    """A PSMNet (Chang and Chen, CVPR 2018) with optional attention in its cost volume.

    Raises:
        ValueError: a value is out of range; the message says which and what is allowed.
    """

    aggregation: Aggregation = "hourglass"
    """Three stacked hourglasses, or `basic`: residual blocks alone."""
    max_disparity: int = 192
    """D: disparities 0 to D - 1 pixels are searched; a multiple of 16."""
    width: float = 1.0
    """Channels relative to the published network's."""
    attention: str = "none"
    """Mechanism: none, efficient or dot_product."""
    attention_sites: tuple[str, ...] = ()
    """Where it is placed; `encoder` stands for that place in all three hourglasses."""
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the mechanism, as key_channels, heads or normalisation."""
    align_corners: bool = False
    """How upsampling aligns; weights trained with torch 0.4 need true."""
    peak_reach: int = 0
    """In evaluation the expectation goes over this many levels of 4 pixels on either side of the
    likeliest; 0 for all, as published."""
    normalisation: Normalisation = "batch"
    """After convolutions: over the batch as published, or over groups of channels of a sample."""

    def __post_init__(self) -> None:
        if self.aggregation not in ("hourglass", "basic"):
            raise ValueError(f"aggregation is hourglass or basic, not '{self.aggregation}'")
        if self.normalisation not in ("batch", "group"):
            raise ValueError(f"normalisation is batch or group, not '{self.normalisation}'")
        if not isinstance(self.max_disparity, Integral):  # NumPy's are whole numbers, too
            raise ValueError(f"max disparity must be a whole number, not {self.max_disparity!r}")
        if self.width > _MOST_WIDTH or self.max_disparity > _MOST_DISPARITIES:
            raise ValueError(
                f"width {self.width} or {self.max_disparity} disparities are more than a network "
                f"can have: at most {_MOST_WIDTH} and {_MOST_DISPARITIES}"
            )
        object.__setattr__(self, "max_disparity", int(self.max_disparity))
        if self.max_disparity < _STRIDE or self.max_disparity % _STRIDE:
            nearest = max(_STRIDE, -(-self.max_disparity // _STRIDE) * _STRIDE)
            raise ValueError(
                f"max disparity must be a multiple of {_STRIDE}, not {self.max_disparity}: "
                f"try {nearest}"
            )
        if not isinstance(self.peak_reach, Integral) or self.peak_reach < 0:
            raise ValueError(f"peak reach must be 0 or more levels, not {self.peak_reach!r}")
        object.__setattr__(self, "peak_reach", int(self.peak_reach))
        if self.width <= 0 or (32 * self.width) % 4:
            raise ValueError(f"width must make 32 * width a multiple of 4, not {self.width}")
        object.__setattr__(self, "attention_sites", _expand_sites(self.attention_sites))
        options = {
            name: int(value)
            if isinstance(value, Integral) and not isinstance(value, bool)
            else value
            for name, value in self.attention_options.items()
        }
        object.__setattr__(self, "attention_options", options)
        if (self.attention == "none") != (not self.attention_sites):
            raise ValueError(
                f"attention '{self.attention}' with sites {list(self.attention_sites)}: "
                "a mechanism needs at least one site, and a site a mechanism"
            )
        if self.aggregation == "basic" and set(self.attention_sites) - {"volume"}:
            raise ValueError("the basic network has no hourglass: its only site is 'volume'")

    def channels(self, published: int) -> int:
        """A published channel count at this width."""
        return round(published * self.width)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"attention_sites": list(self.attention_sites)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PSMNetConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown field.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model setting '{unknown[0]}': made by a newer version?")
        return cls(**values)


def _expand_sites(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Replace a bare hourglass place by its three sites; network order, no repetitions."""
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


def _with_small(presets: dict[str, PSMNetConfig]) -> dict[str, PSMNetConfig]:
    """Each preset, and with `-small` the same at half the channels."""
    return presets | {f"{name}-small": replace(c, width=0.5) for name, c in presets.items()}


PRESETS: dict[str, PSMNetConfig] = _with_small(
    {
        "psmnet": PSMNetConfig(),
        "ea-psmnet": PSMNetConfig(attention="efficient", attention_sites=("encoder",)),
        "nonlocal-psmnet": PSMNetConfig(attention="dot_product", attention_sites=("encoder",)),
    }
)
"""Networks by name. Both attention presets use the same sites, so that they compare."""


def preset(name: str) -> PSMNetConfig:
    """A preset by name.

    Raises:
        ValueError: unknown; the message lists the choices.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset '{name}': choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def read_config(path: Path) -> PSMNetConfig:
    """A network from a JSON file of its fields, as `to_dict` gives them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or no network.
    """
    return read_record(path, PSMNetConfig, remedy="it describes no network")
