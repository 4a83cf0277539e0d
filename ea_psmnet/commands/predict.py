"""`predict`: from two images to disparity files."""

from __future__ import annotations

from pathlib import Path

import tyro

from ea_psmnet.machine import Device, Precision

__all__ = ["predict"]


def predict(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    out: Path,
    checkpoint: Path | None = None,
    max_disparity: int | None = None,
    align_corners: bool | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Predict the disparity of a rectified pair.

    Writes, named after the left image: disparity as `.pfm` (float32 pixels) and 16-bit `.png`
    (pixels times 256, as KITTI), and a `_preview.png` to look at.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        out: Folder for the results.
        checkpoint: Weights (.safetensors), or an original PSMNet's (.tar); default: the bundled.
        max_disparity: Search this many pixels instead of what the network was trained for.
        align_corners: True for original checkpoints trained with torch 0.4 (2018).
        device: Where to compute.
        precision: Float32 (exact) or bfloat16 where the processor is fast at it.
    """
    from ea_psmnet.files import read_image
    from ea_psmnet.inference.matcher import StereoMatcher
    from ea_psmnet.inference.outputs import write_prediction

    images = read_image(left), read_image(right)
    matcher = StereoMatcher.load(
        checkpoint,
        max_disparity=max_disparity,
        align_corners=align_corners,
        device=device,
        precision=precision,
    )
    disparity = matcher(*images).disparity
    for path in write_prediction(out, left.stem, images[0], disparity):
        print(path)
