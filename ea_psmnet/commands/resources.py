"""`resources`: memory and operations of attention."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path


def resources(
    *,
    volumes: tuple[str, ...] = (),
    channels: int = 64,
    key_channels: int | None = None,
    mechanisms: tuple[str, ...] = (),
    dtype: str = "float32",
    limit: str = "1GiB",
    preset: str | None = None,
    size: tuple[int, int] = (544, 960),
    batch: int = 1,
    max_disparity: int = 192,
    sites: tuple[str, ...] = (),
    out: Path | None = None,
) -> None:
    """Measure memory and operations of attention, on volumes or in a network.

    On volumes, the closed form of every mechanism is compared with measurements, as in Table 1 and
    Figure 3 of Shen et al., WACV 2021. With --preset, the report covers that network's attention
    modules, and volumes only if --volumes names some.

    Args:
        volumes: Sizes of volumes, such as 64x64 or 48x136x240; default: the five of the paper.
        channels: Channels d of the volumes.
        key_channels: Key channels d_k of efficient and dot-product attention; default: d / 2.
        mechanisms: Mechanisms; default: all. An unknown name lists them.
        dtype: Type of the volumes: float32, bfloat16, float16 or float64.
        limit: Largest closed form to measure, in bytes.
        preset: Network, for example ea-psmnet or nonlocal-psmnet.
        size: Height and width of the network's images.
        batch: Number of pairs at once.
        max_disparity: Disparities that the network searches, in pixels.
        sites: Sites of attention instead of the preset's own, for example bottleneck.
        out: Folder for resources.json, resources.md and resources.png.
    """
    from dataclasses import replace

    from ea_psmnet.experiments.networks import network_markdown, network_report
    from ea_psmnet.experiments.plots import resource_plot
    from ea_psmnet.experiments.resources import PAPER_VOLUMES, volume_markdown, volume_report
    from ea_psmnet.files import write_image, write_json, write_text
    from ea_psmnet.models.config import preset as find_preset
    from ea_psmnet.tables import check_range, parse_bytes

    for name, value in (("channels", channels), ("batch", batch)):
        check_range(name, value, 1, 2**16)
    for side in size:
        check_range("a side of size", side, 1, 2**14)
    if preset is None:
        of_network = {"size": size, "batch": batch, "max_disparity": max_disparity, "sites": sites}
        _refuse(of_network, "is for a network: name its --preset, as ea-psmnet")
    elif not volumes:
        of_volumes = {"channels": channels, "key_channels": key_channels, "mechanisms": mechanisms}
        _refuse(of_volumes, "is for volumes: name them by --volumes, or leave out --preset")
    network = on_volumes = None
    if preset is not None:
        config = replace(find_preset(preset), max_disparity=max_disparity)
        config = replace(config, attention_sites=sites) if sites else config
        network = network_report(config, size, batch=batch, dtype=dtype)
    if volumes or network is None:
        on_volumes = volume_report(
            volumes or PAPER_VOLUMES,
            channels=channels,
            key_channels=key_channels,
            cases=mechanisms,
            dtype=dtype,
            limit=parse_bytes(limit),
        )
    parts = [volume_markdown(on_volumes)] if on_volumes else []
    parts += [network_markdown(network)] if network else []
    text = "\n\n".join(parts)
    print(text)
    if out is not None:
        report = {"volumes": on_volumes, "network": network}
        values = {name: part.to_dict() for name, part in report.items() if part is not None}
        write_json(out / "resources.json", values)
        write_text(out / "resources.md", f"{text}\n")
        if on_volumes is not None:
            write_image(out / "resources.png", resource_plot(on_volumes))


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise a ValueError for the first option that does not have its default."""
    defaults = inspect.signature(resources).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise ValueError(f"--{name.replace('_', '-')} {reason}")
