"""Networks by a short text: mechanism, places and options, as `efficient@bottleneck,heads=2`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.ops.choices import check_choice

__all__ = ["VARIANTS", "Variant", "at_sites", "parse_variant", "slug"]


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
