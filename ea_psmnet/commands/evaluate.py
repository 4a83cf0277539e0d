"""`evaluate`: a checkpoint on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ea_psmnet.commands.options import MatcherOptions

__all__ = ["evaluate"]


def evaluate(
    *,
    root: Path,
    data: Literal["auto", "sceneflow", "folder"] = "auto",
    split: Literal["train", "test"] = "test",
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
    out: Path | None = None,
    sheets: bool = False,
) -> None:
    """Report EPE, bad-1, bad-2, bad-3 and D1 of a checkpoint on a dataset.

    Every pixel with a known disparity below the searched maximum counts once.

    Args:
        root: Folder of the dataset.
        data: Kind of dataset; auto looks at what lies there.
        split: Of Scene Flow: FlyingThings3D's TEST frames, or all training frames.
        options: Which network predicts, and how.
        out: Folder for report.json and report.md.
        sheets: Also write a sheet a pair: left image, disparity, truth and error map.
    """
    from datasets.builder import build_dataset
    from ea_psmnet.inference.matcher import BUNDLED
    from ea_psmnet.reports.evaluation import evaluate as run
    from ea_psmnet.reports.evaluation import sheet_writer, write_report

    if sheets and out is None:
        raise ValueError("--sheets needs --out, a folder to write them to")
    dataset = build_dataset(data, root, split=split)
    matcher = options.load()
    label = (options.checkpoint or BUNDLED).stem
    evaluation = run(matcher, dataset, label, sheet_writer(out) if sheets and out else None)
    print(evaluation.to_markdown())
    if out is not None:
        write_report(out, evaluation)
