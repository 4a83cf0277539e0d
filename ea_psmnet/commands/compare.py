"""`compare`: networks side by side under one memory budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from datasets.names import DatasetName
from ea_psmnet.machine import Device, Precision

__all__ = ["compare"]

_MOST_SECONDS = 30 * 24 * 3600


def compare(
    *,
    variants: tuple[str, ...] = (),
    presets: tuple[str, ...] = (),
    checkpoints: tuple[Path, ...] = (),
    sites: tuple[str, ...] = ("encoder",),
    sizes: tuple[str, ...] = (),
    batches: tuple[int, ...] = (1,),
    works: tuple[Literal["inference", "training"], ...] = ("inference", "training"),
    width: float = 1.0,
    max_disparity: int = 192,
    root: Path | None = None,
    data: DatasetName = "auto",
    budget: str = "GTX 1080 Ti",
    device: Device = "auto",
    precision: Precision = "auto",
    allocator: Literal["kept", "default"] = "kept",
    repeats: int = 3,
    timeout: float = 3600,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Memory and time of several networks, and errors where they are trained: the paper's Table 5.

    Each workload runs in a process of its own under the same budget. One that runs out of memory
    is reported as such, with the bytes it asked for, the module that asked and its closed form; one
    that dies or hangs is reported and does not hold up the others.

    A variant is NAME[@SITE+SITE][,OPTION=VALUE]: baseline, efficient, non-local (the textbook
    form), non-local-sdpa (the same function with linear memory), focused, external or hydra, as
    efficient@bottleneck or non-local@volume+decoder,key_channels=16. Without variants, presets and
    checkpoints the paper's three are compared: baseline, efficient and non-local. What it takes is
    estimated first.

    Args:
        variants: Untrained networks, at --sites where they name none.
        presets: Untrained networks by name, as nonlocal-psmnet-small.
        checkpoints: Trained weights; their errors are measured on --root.
        sites: Where attention is placed: volume, encoder, bottleneck, decoder, output, or several
            joined as encoder+decoder; each is a network of its own.
        sizes: Of random images, as 256x512; default: 256x512, or none with --root.
        batches: Pairs at once.
        works: What to do with random images.
        width: Channels of the variants relative to the published network's.
        max_disparity: Disparities searched by all, in pixels.
        root: Folder of a dataset; its test split is predicted by all networks.
        data: Kind of dataset; auto looks at what lies there.
        budget: Memory above the loaded network: 11GiB, a card (GTX 1080 Ti is the paper's), or
            physical for what is free now.
        device: Where to compute.
        precision: Float32 (exact), or bfloat16 where the processor is fast at it.
        allocator: Of the CPU's memory: kept is told to keep what is freed, as all commands do,
            which is faster and holds more; default is glibc's own.
        repeats: Runs that are timed; their median counts.
        timeout: Seconds until a process counts as hanging.
        threads: Threads that compute on the CPU; default: one a core, or OMP_NUM_THREADS.
        out: Folder for comparison.json, comparison.md and, where memory was measured at random
            images, comparison.png. Outcomes are kept there too until all are known: the same
            command goes on where one was stopped.
    """
    from ea_psmnet.experiments.compare import KEPT_FILES, comparison_markdown, expected_seconds
    from ea_psmnet.experiments.compare import compare as run
    from ea_psmnet.experiments.measure import parse_budget
    from ea_psmnet.experiments.plots import comparison_plot
    from ea_psmnet.experiments.trial import Load, Network, named_networks, plan
    from ea_psmnet.files import remove_own, write_image, write_json, write_text
    from ea_psmnet.machine import choose_device, use_threads
    from ea_psmnet.tables import check_range

    use_threads(threads)
    check_range("timeout", timeout, 1, _MOST_SECONDS)
    networks: list[Network] = named_networks(
        variants, presets, checkpoints, sites=sites, width=width, max_disparity=max_disparity
    )
    load = Load(sizes=sizes, batches=batches, works=works, root=root, data=data)
    limit = parse_budget(budget, choose_device(device))
    trials = plan(
        networks, load, budget=limit.bytes, device=device, precision=precision,
        allocator=allocator, repeats=repeats,
    )  # fmt: skip
    minutes = max(1, round(expected_seconds(trials, timeout) / 60))
    told = f"{len(trials)} trials of {len(networks)} networks: about {minutes} min"
    print(f"{told} at most, less where memory runs out", file=sys.stderr)
    kept = None if out is None else out / "unfinished"
    comparison = run(trials, limit, timeout=timeout, kept=kept)
    text = comparison_markdown(comparison)
    print(text)
    if out is not None:
        write_json(out / "comparison.json", comparison.to_dict())
        write_text(out / "comparison.md", f"{text}\n")
        picture = comparison_plot(comparison)
        if picture is None:
            (out / "comparison.png").unlink(missing_ok=True)  # an earlier comparison's
        else:
            write_image(out / "comparison.png", picture)
    if kept is not None:
        remove_own(kept, KEPT_FILES)
