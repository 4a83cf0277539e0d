"""`export`: a network as an ONNX or OpenVINO file, compared with the network itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from ea_psmnet.experiments.parity import Parity
    from ea_psmnet.sample import StereoSample

_RENDERED = (384, 640)


def export(
    *,
    out: Path,
    checkpoint: Path | None = None,
    format: Literal["onnx", "openvino"] = "onnx",
    size: tuple[int, ...] = (),
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    max_disparity: int | None = None,
    align_corners: Annotated[bool | None, tyro.conf.FlagConversionOff] = None,
    peak_reach: int | None = None,
    attention: bool = True,
    root: Path | None = None,
    pairs: int = 2,
    force: bool = False,
    threads: int | None = None,
) -> None:
    """Export a network to ONNX or OpenVINO, and check that the file predicts the same.

    The file holds weights and a description. It is run on pairs beside the network: the command
    reports the differences of disparity from the network in float32, the change of EPE, and the
    time, and keeps no file that differs by more than 0.05 px on average.

    Args:
        out: The file: NAME.onnx, or NAME.xml for OpenVINO, with its weights in NAME.bin.
        checkpoint: Weights (.safetensors), an original PSMNet file (.tar), a run folder, or the
            name of bundled weights; default: ea-light.
        format: Format of the file.
        size: Height and width of the images, multiples of 16; each of several sizes gets its own
            file, NAME-HEIGHTxWIDTH. Default: any size.
        precision: Type of weights and convolutions; softmaxes and sums stay in float32. bfloat16 is
            for OpenVINO: it is chosen when the file runs.
        max_disparity: Number of disparities to search, in pixels; default: as in training.
        align_corners: Corner alignment of upsampling; true for original checkpoints of torch 0.4
            (2018).
        peak_reach: Average only over this number of levels around the most likely disparity. 0: as
            in training. Default: the checkpoint's value.
        attention: Use the attention of the network.
        root: Folder of pairs with ground truth, as for evaluate; default: rendered pairs.
        pairs: Number of pairs to compare.
        force: Keep a file that differs by more than 0.05 px on average.
        threads: Number of CPU threads; default: one per core, or OMP_NUM_THREADS.
    """
    from ea_psmnet.experiments.parity import check_parity, compare
    from ea_psmnet.files import content_hash, printable
    from ea_psmnet.inference.export import check_export, describe, export_paths, written
    from ea_psmnet.inference.exported import ExportedMatcher
    from ea_psmnet.inference.matcher import DEFAULT, StereoMatcher
    from ea_psmnet.machine import has_fast_bfloat16, use_threads
    from ea_psmnet.models.weights import find_weights, load_model
    from ea_psmnet.tables import check_range

    if len(size) % 2:
        raise ValueError(f"--size takes pairs of height and width, not {len(size)} numbers")
    check_export(format, precision, out)
    check_range("pairs", pairs, 1, 10**6)
    use_threads(threads)
    weights = find_weights(checkpoint or DEFAULT)
    network = load_model(
        weights,
        max_disparity=max_disparity,
        align_corners=align_corners,
        peak_reach=peak_reach,
        attention=attention,
    )
    exact = StereoMatcher(network, device="cpu", precision="exact")
    narrow = precision != "float32" and has_fast_bfloat16("cpu")
    timed = StereoMatcher(network, device="cpu") if narrow else exact
    sizes = list(zip(size[::2], size[1::2], strict=True))
    shapes: list[tuple[int, int] | None] = [*sizes] or [None]
    name, sha256 = weights.stem, content_hash(weights)
    records = [describe(network, s, precision, weights=name, sha256=sha256) for s in shapes]
    paths = export_paths(out, sizes)
    for record, shape, path in zip(records, shapes, paths, strict=True):
        samples = _samples(root, pairs, shape, exact.max_disparity)
        print(f"{printable(path)}: tracing the network", file=sys.stderr)
        with written(network, record, path, format) as (file, parameters):
            exported = ExportedMatcher.load(file, weights=parameters, threads=threads)
            parity = compare(exact, timed, exported, samples)
            print(_report(parity, path, "bfloat16" if narrow else "float32"))
            if not force:
                check_parity(parity, str(path))
        print(printable(path))


def _samples(
    root: Path | None, count: int, size: tuple[int, int] | None, reach: int
) -> list[StereoSample]:
    """Pairs to compare: from a folder, or rendered.

    Args:
        root: The folder; None for rendered pairs.
        count: Number of pairs, at most.
        size: Height and width to cut pairs to; None for their own.
        reach: Largest disparity in rendered pairs.

    Raises:
        ValueError: No pair is large enough.
    """
    from ea_psmnet.datasets.builder import build_dataset
    from ea_psmnet.datasets.synthetic import SyntheticScenes

    if root is None:
        height, width = size or (_RENDERED[0], max(_RENDERED[1], reach))
        scenes = SyntheticScenes(
            split="test", size=(height, width), count=count, max_disparity=reach
        )
        return list(scenes)
    dataset = build_dataset("auto", root)
    height, width = size or (1, reach)
    fitting = (
        sample
        for sample in (dataset[index] for index in range(len(dataset)))
        if sample.disparity.shape[0] >= height and sample.disparity.shape[1] >= width
    )
    samples = list(islice(fitting, count))
    if not samples:
        raise ValueError(f"{root}: has no pair of at least {height} x {width} px")
    return [_cut(sample, *size) for sample in samples] if size else samples


def _cut(sample: StereoSample, height: int, width: int) -> StereoSample:
    """The top left part of a sample."""
    part = slice(height), slice(width)
    fields = ("left", "right", "disparity", "valid")
    masks = {name: mask[part] for name, mask in sample.masks.items()}
    return replace(sample, masks=masks, **{name: getattr(sample, name)[part] for name in fields})


def _report(parity: Parity, path: Path, timed: str) -> str:
    """The figures of all pairs, and one line about them."""
    from ea_psmnet.files import printable

    change = "" if isnan(parity.epe_change) else f", EPE {parity.epe_change:+.5f} px"
    return (
        f"{parity.table()}\n\n{printable(path.name)} beside the network in float32 (--precision "
        f"exact): {parity.mean:.5f} px on average, at most {parity.most:.3f} px{change}; "
        f"{parity.speed:.2f} times as fast as the network in {timed}"
    )
