"""`submission`: an archive to upload to a benchmark's server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ea_psmnet.commands.options import MatcherOptions
from ea_psmnet.datasets.names import BenchmarkName, Resolution

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def submission(
    benchmark: tyro.conf.Positional[BenchmarkName],
    *,
    root: Path,
    out: Path,
    method: str = "EA-PSMNet",
    resolution: Resolution | None = None,
    partial: bool = False,
    scale: float = 1,
    memory: str | None = None,
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> None:
    """Predict the pairs of a public benchmark and write the archive that its server takes.

    File names, formats and run times are as the server expects. The same command continues after an
    interruption.

    Args:
        benchmark: The benchmark.
        root: Folder with the benchmark's images, unpacked.
        out: The archive to write, a .zip file.
        method: Name of the method; Middlebury's file names contain it.
        resolution: Middlebury's images: full, half or quarter size; default: the only one there.
        partial: Write the archive even if pairs of the benchmark are missing.
        scale: Factor on the size at which pairs are predicted; see `predict`.
        memory: Memory limit of the program on the device, for example 8GiB; default: the free
            memory.
        options: Network that predicts, and its options.
    """
    from ea_psmnet.evaluation.submission import (
        BENCHMARKS,
        find_pairs,
        stated_disparities,
        write_submission,
    )
    from ea_psmnet.files import content_hash
    from ea_psmnet.inference.matcher import DEFAULT
    from ea_psmnet.inference.pairs import check_scale, predicted_at_scale
    from ea_psmnet.models.weights import find_weights

    check_scale(scale)
    if out.suffix != ".zip":
        raise ValueError(f"{out}: an archive's name ends in .zip")
    entries = find_pairs(benchmark, root, method=method, resolution=resolution)
    whole = BENCHMARKS[benchmark].pairs
    if len(entries) != whole and not partial:
        raise ValueError(
            f"{root}: found {len(entries)} of {benchmark}'s {whole} pairs; --partial writes an "
            "archive of these"
        )
    matcher = options.load(memory)
    stated, searched = stated_disparities(entries), matcher.max_disparity / scale
    if stated > searched:
        print(
            f"{root}: calib.txt states up to {stated} disparities; larger ones than the "
            f"{searched:g} px that are searched will be wrong: give --max-disparity or --scale",
            file=sys.stderr,
        )

    def predict(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        return predicted_at_scale(matcher, (left, right), scale).disparity

    settings = {
        "root": str(root.resolve()),
        "weights": content_hash(find_weights(options.checkpoint or DEFAULT)),
        "max_disparity": matcher.max_disparity,
        "precision": options.precision,
        "peak_reach": matcher.model.config.peak_reach,
        "attention": options.attention,
        "align_corners": matcher.model.config.align_corners,
        "two_scales": (repr(matcher.map_for(False).weights) if options.two_scales else "off"),
        "scale": scale,
    }
    seconds = write_submission(out, benchmark, entries, predict, settings)
    print(f"{out}: {len(entries)} pairs, {seconds:.2f} s each")
