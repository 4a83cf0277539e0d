"""`compare`: networks side by side under one memory budget."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

__all__ = ["compare"]


def compare(
    *,
    root: Path,
    data: Literal["auto", "sceneflow", "folder"] = "auto",
    checkpoints: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    presets: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    budget: str = "11GiB",
    max_disparity: int = 192,
    out: Path | None = None,
) -> None:
    """Errors, memory and time of several networks on a dataset's test split.

    Each runs in a process of its own under the same budget, and one that runs out of memory is
    reported as such, with the size of the tensor it asked for.

    Args:
        root: Folder of the dataset.
        data: Kind of dataset; auto looks at what lies there.
        checkpoints: Trained weights, measured with their errors.
        presets: Untrained networks, measured for memory and time only.
        budget: Memory above the loaded network; the default is a GTX 1080 Ti's, the paper's card.
        max_disparity: Disparities searched by all of them, in pixels.
        out: Folder for comparison.json and comparison.md.
    """
    from dataclasses import asdict

    from datasets.builder import build_dataset
    from ea_psmnet.files import write_json, write_text
    from ea_psmnet.models.config import preset
    from ea_psmnet.models.weights import load_state
    from ea_psmnet.reports.comparison import compare as run
    from ea_psmnet.reports.comparison import comparison_markdown
    from ea_psmnet.reports.tables import parse_bytes
    from ea_psmnet.reports.trial import Trial

    if not checkpoints and not presets:
        raise ValueError("nothing to compare: name --checkpoints or --presets")
    limit = parse_bytes(budget)
    # What is wrong shows here, in one line, not in a process of its own.
    build_dataset(data, root, split="test")
    for name in presets:
        preset(name)
    for path in checkpoints:
        load_state(path)
    networks: list[tuple[str, str | None, str | None]] = [
        *((path.stem, str(path), None) for path in checkpoints),
        *((name, None, name) for name in presets),
    ]
    trials = [Trial(*network, data, str(root), limit, max_disparity) for network in networks]
    outcomes = run(trials)
    table = comparison_markdown(outcomes, limit)
    print(table)
    if out is not None:
        records = [asdict(outcome) for outcome in outcomes]
        write_json(out / "comparison.json", {"budget": limit, "outcomes": records})
        write_text(out / "comparison.md", f"{table}\n")
