"""`compare`: networks side by side under one memory budget."""

from __future__ import annotations

import sys
from pathlib import Path

from ea_psmnet.datasets.names import DatasetName
from ea_psmnet.machine import Device, Precision

_MOST_SECONDS = 30 * 24 * 3600


def compare(
    *,
    variants: tuple[str, ...] = (),
    presets: tuple[str, ...] = (),
    checkpoints: tuple[Path, ...] = (),
    sites: tuple[str, ...] = ("encoder",),
    sizes: tuple[str, ...] = (),
    batches: tuple[int, ...] = (1,),
    width: float = 1.0,
    max_disparity: int = 192,
    root: Path | None = None,
    data: DatasetName = "auto",
    budget: str = "GTX 1080 Ti",
    device: Device = "auto",
    precision: Precision = "auto",
    repeats: int = 3,
    timeout: float = 3600,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Compare the memory and time of networks, and the errors of trained ones (Table 5).

    Every workload runs in a separate process under the same memory budget. If one runs out of
    memory, the report names the bytes that were refused, the module and its closed form; one that
    dies or hangs is reported and does not stop the others.

    A variant is NAME[@SITE+SITE][,OPTION=VALUE]: baseline, efficient, non-local (the textbook
    form), non-local-sdpa (the same function with linear memory), focused, external or hydra, for
    example efficient@bottleneck or non-local@volume+decoder,key_channels=16. Without variants,
    presets and checkpoints, the paper's three networks are compared: baseline, efficient and
    non-local. The duration is estimated first.

    Args:
        variants: Untrained networks, with attention at --sites if they name no site.
        presets: Untrained networks by name, for example nonlocal-psmnet-small.
        checkpoints: Trained networks; their errors are measured on --root.
        sites: Sites of attention: volume, encoder, bottleneck, decoder, output, or several joined
            as in encoder+decoder; each gives another network.
        sizes: Heights and widths of random images; default: 256x512, or none with --root.
        batches: Numbers of pairs at once.
        width: Channels of the variants relative to the published network's.
        max_disparity: Disparities that all networks search, in pixels.
        root: Folder of a dataset that all networks predict: its test split, or all pairs if there
            is none.
        data: Kind of the dataset; auto recognises it by its files.
        budget: Memory in addition to the loaded network: a size such as 11GiB, a GPU (the paper's
            is GTX 1080 Ti), or physical for the free memory.
        device: Device to compute on.
        precision: Float32 (exact), or bfloat16 if the device is fast at it.
        repeats: Number of runs that are timed; the median is reported.
        timeout: Seconds after which a process is ended.
        threads: Number of CPU threads; default: one for each core, or OMP_NUM_THREADS.
        out: Folder for comparison.json, comparison.md and, if memory was measured on random
            images, comparison.png. Unfinished results are kept there, so that the same command
            continues after an interruption.
    """
    from ea_psmnet.experiments.compare import compare as run
    from ea_psmnet.experiments.compare import comparison_markdown, expected_seconds
    from ea_psmnet.experiments.measure import parse_budget
    from ea_psmnet.experiments.networks import named_networks
    from ea_psmnet.experiments.plots import comparison_plot
    from ea_psmnet.experiments.trial import Load, plan
    from ea_psmnet.files import write_image, write_json, write_text
    from ea_psmnet.machine import choose_device, use_threads
    from ea_psmnet.store import Store
    from ea_psmnet.tables import check_range

    use_threads(threads)
    check_range("timeout", timeout, 1, _MOST_SECONDS)
    networks = named_networks(
        variants, presets, checkpoints, sites=sites, width=width, max_disparity=max_disparity
    )
    load = Load(sizes=sizes, batches=batches, root=root, data=data)
    limit = parse_budget(budget, choose_device(device))
    trials = plan(
        networks, load, budget=limit.bytes, device=device, precision=precision, repeats=repeats
    )
    minutes = max(1, round(expected_seconds(trials, timeout) / 60))
    expected = f"{len(trials)} trials of {len(networks)} networks: about {minutes} min"
    print(f"{expected} at most, less if memory runs out", file=sys.stderr)
    kept = None if out is None else Store(out / "unfinished")
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
        kept.clear()
