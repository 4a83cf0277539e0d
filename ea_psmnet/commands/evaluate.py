"""`evaluate`: a checkpoint on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ea_psmnet.machine import Device, Precision

__all__ = ["evaluate"]


def evaluate(
    *,
    root: Path,
    data: Literal["auto", "sceneflow", "folder"] = "auto",
    split: Literal["train", "test"] = "test",
    checkpoint: Path | None = None,
    max_disparity: int | None = None,
    align_corners: bool | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
    sheets: bool = False,
) -> None:
    """Report EPE, bad-1, bad-2, bad-3 and D1 of a checkpoint on a dataset.

    Every pixel with a known disparity below the searched maximum counts once.

    Args:
        root: Folder of the dataset.
        data: Kind of dataset; auto looks at what lies there.
        split: Of Scene Flow: FlyingThings3D's TEST frames, or all training frames.
        checkpoint: Weights (.safetensors), or an original PSMNet's (.tar); default: the bundled.
        max_disparity: Search this many pixels instead of what the network was trained for.
        align_corners: True for original checkpoints trained with torch 0.4 (2018).
        device: Where to compute.
        precision: Float32 (exact) or bfloat16 where the processor is fast at it.
        out: Folder for report.json and report.md.
        sheets: Also write a sheet a pair: left image, disparity, truth and error map.
    """
    from datasets.builder import build_dataset
    from ea_psmnet.inference.matcher import BUNDLED, StereoMatcher
    from ea_psmnet.reports.evaluation import evaluate as run
    from ea_psmnet.reports.evaluation import sheet_writer, write_report

    if sheets and out is None:
        raise ValueError("--sheets needs --out, a folder to write them to")
    dataset = build_dataset(data, root, split=split)
    matcher = StereoMatcher.load(
        checkpoint,
        max_disparity=max_disparity,
        align_corners=align_corners,
        device=device,
        precision=precision,
    )
    label = (checkpoint or BUNDLED).stem
    evaluation = run(matcher, dataset, label, sheet_writer(out) if sheets and out else None)
    print(evaluation.to_markdown())
    if out is not None:
        write_report(out, evaluation)
