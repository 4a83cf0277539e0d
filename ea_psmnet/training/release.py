"""Trained weights made ready to ship: `python -m ea_psmnet.training.release TRAINED SHIPPED`."""

from __future__ import annotations

import sys
from pathlib import Path

from ea_psmnet.files import content_hash
from ea_psmnet.models.weights import load_model, save_model

__all__ = ["release"]


def release(trained: Path, shipped: Path) -> str:
    """Store a run's weights in half precision.

    Args:
        trained: weights of a run.
        shipped: the file to write; batch statistics stay float32 in it.

    Returns:
        The SHA-256 of `shipped`, for the card beside it.
    """
    save_model(shipped, load_model(trained), half=True)
    return content_hash(shipped)


if __name__ == "__main__":
    target = Path(sys.argv[2])
    print(f"{target}: {release(Path(sys.argv[1]), target)}")
