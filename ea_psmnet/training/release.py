"""Trained weights made ready to ship: `python -m ea_psmnet.training.release --help`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ea_psmnet.console import exit_code
from ea_psmnet.files import content_hash
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_into, load_model, load_state, save_model

__all__ = ["average", "release"]


def release(
    trained: Path,
    shipped: Path,
    *,
    peak_reach: int = 0,
    other: Path | None = None,
    share: float = 0.5,
) -> str:
    """Store a run's weights in half precision.

    Args:
        trained: weights of a run.
        shipped: the file to write; batch statistics stay float32 in it.
        peak_reach: how the weights are to be used; see `PSMNetConfig`.
        other: weights to average them with, as those that the run started from; of a narrower
            network they are widened, as the run did.
        share: of the other weights in the mean.

    Returns:
        The SHA-256 of `shipped`, for the card beside it.

    Raises:
        ValueError: the two are weights of different networks.
    """
    network = load_model(trained, peak_reach=peak_reach)
    if other is not None:
        average(network, _grown(other, network.config), share)
    save_model(shipped, network, half=True)
    return content_hash(shipped)


def _grown(path: Path, config: PSMNetConfig) -> PSMNet:
    """Weights of a network of this width or of a narrower one, at this width."""
    theirs = replace(load_state(path)[0], peak_reach=config.peak_reach)
    network = build_model(replace(theirs, width=config.width))
    load_into(network, path)
    return network


@torch.no_grad()
def average(network: PSMNet, other: PSMNet, share: float) -> None:
    """Move weights and batch statistics a share of the way to another network's.

    The mean of two networks of which one was trained from the other often beats both (Wortsman et
    al., "Robust fine-tuning of zero-shot models", CVPR 2022).

    Raises:
        ValueError: the networks differ in more than their weights.
    """
    if network.config != other.config:
        raise ValueError(f"averaging {network.config} with {other.config}: they must be equal")
    others = other.state_dict()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(others[name], share)


def _main() -> None:
    parser = argparse.ArgumentParser(description=release.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("trained", type=Path)
    parser.add_argument("shipped", type=Path)
    parser.add_argument("--peak-reach", type=int, default=0)
    parser.add_argument("--other", type=Path, help="weights to average them with")
    parser.add_argument("--share", type=float, default=0.5, help="of the other weights")
    chosen = vars(parser.parse_args())
    print(f"{chosen['shipped']}: {release(**chosen)}")


if __name__ == "__main__":
    sys.exit(exit_code(_main))
