"""Trained weights made ready to ship: `python -m ea_psmnet.training.release --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ea_psmnet.console import exit_code
from ea_psmnet.files import content_hash
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.models.weights import load_model, save_model

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
        other: weights to average them with, as those that the run started from.
        share: of the other weights in the mean.

    Returns:
        The SHA-256 of `shipped`, for the card beside it.

    Raises:
        ValueError: the two are weights of different networks.
    """
    network = load_model(trained, peak_reach=peak_reach)
    if other is not None:
        average(network, load_model(other, peak_reach=peak_reach), share)
    save_model(shipped, network, half=True)
    return content_hash(shipped)


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
