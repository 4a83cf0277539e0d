"""`evaluate`: networks, baselines and other systems' predictions on a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ea_psmnet.commands.options import MatcherOptions
from ea_psmnet.datasets.names import DatasetName, RenderPass, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ea_psmnet.evaluation.predictors import Predictor
    from ea_psmnet.evaluation.report import EvaluationReport
    from ea_psmnet.evaluation.shares import Journal
    from ea_psmnet.sample import StereoSample

_UNFINISHED = "unfinished"
"""Folder in `--out` for measurements until the report is written."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of `evaluate`."""

    root: Path | None = None
    """Folder of the dataset, or a list of pairs."""
    data: DatasetName = "auto"
    """Kind of the dataset; auto recognises it by its files."""
    split: Split | None = None
    """Split of the dataset; default: test, which for Scene Flow is FlyingThings3D's TEST, or train
    if only that has ground truth."""
    render_pass: RenderPass = "clean"
    """Rendering of Scene Flow and Sintel."""
    matcher: Annotated[MatcherOptions, tyro.conf.arg(name="")] = field(
        default_factory=MatcherOptions
    )
    """Network, and options of all networks."""
    checkpoints: tuple[Path, ...] = ()
    """Further networks, evaluated after that of --checkpoint."""
    method: tuple[Literal["network", "sgbm", "bm"], ...] = ()
    """OpenCV's matchers, or the bundled network, which is the default if no predictor is named."""
    fill: bool = True
    """Fill the holes of sgbm and bm with the background beside them."""
    pad: bool = True
    """Let sgbm and bm search the left border as well, where OpenCV alone gives no result."""
    predictions: tuple[Path, ...] = ()
    """Folders of disparity maps from any system: NAME.npy, .pfm or .png (as KITTI's)."""
    protocols: tuple[str, ...] = ()
    """Protocols: psmnet, gwcnet, raft, pooled, kitti, middlebury; default: all."""
    limit: int = 192
    """Disparity up to which sgbm and bm search, and from which on only kitti and middlebury count
    ground truth."""
    batch: int = 1
    """Number of consecutive pairs that a network predicts at once, if sizes and memory allow."""
    out: Path | None = None
    """Folder for report.json, report.md, images.csv and pictures. Unfinished measurements are kept
    there, so that the same command continues after an interruption."""
    confidence: bool = False
    """Measure the networks' confidence: reliability, calibration error and sparsification."""
    sheets: bool = False
    """Draw a sheet of every pair: left image, disparity, ground truth and error map."""
    error_maps: bool = False
    """Draw an error map of every pair."""
    worst: bool = False
    """Draw a sheet of the ten worst pairs of every predictor."""
    report: Path | None = None
    """Read this report.json instead of evaluating."""
    against: Path | None = None
    """Earlier report.json to compare with by differences and their intervals."""


def evaluate(options: Annotated[EvaluationOptions, tyro.conf.arg(name="")]) -> None:
    """Measure errors of networks, OpenCV's matchers and saved predictions, by every protocol.

    All predictors are measured in one pass over the dataset. Under torchrun the processes share the
    pairs, with the same results.
    """
    from ea_psmnet.evaluation.report import EvaluationReport
    from ea_psmnet.evaluation.shares import process_index
    from ea_psmnet.store import Store

    pictures = options.sheets or options.error_maps or options.worst
    if options.report is not None:
        _check_only_read(options)
    if pictures and options.out is None:
        raise ValueError("pictures need --out, a folder for them")
    earlier = EvaluationReport.read(options.against) if options.against else None
    report = EvaluationReport.read(options.report) if options.report else _measure(options, earlier)
    if process_index() > 0:
        return
    print(report.to_text())
    if options.out is not None:
        _warn_of_replaced(options.out, report)
        report = report.with_pictures_of(options.out)
        report.write(options.out)  # now: if the comparison is refused, the report is there
        if options.report is None:
            Store(options.out / _UNFINISHED).clear()
    if earlier is not None:
        report = replace(report, comparisons=tuple(report.against(earlier)))
        print(f"\n{report.comparisons_text()}")
        if options.out is not None:
            report.write(options.out)


def _check_only_read(options: EvaluationOptions) -> None:
    """Raise a ValueError if an option of measuring is given with `--report`."""
    usual = EvaluationOptions()
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name not in ("report", "against", "out") and value != getattr(usual, each.name):
            option = f"--{each.name.replace('_', '-')}"
            given = "options of networks" if each.name == "matcher" else option
            raise ValueError(f"--report reads what was measured: leave out {given}, or --report")


def _warn_of_replaced(folder: Path, report: EvaluationReport) -> None:
    """Warn if the report that is there has predictors that the new one lacks."""
    try:
        before = type(report).read(folder / "report.json")
    except (OSError, ValueError):
        return
    now = {each.label for each in report.evaluations}
    gone = [each.label for each in before.evaluations if each.label not in now]
    if gone:
        warnings.warn(
            f"{folder}: replaces a report of {', '.join(gone)}, whose pictures stay if it had any",
            stacklevel=2,
        )


def _measure(options: EvaluationOptions, earlier: EvaluationReport | None) -> EvaluationReport:
    from ea_psmnet.datasets.builder import build_dataset, detect_dataset, measuring_split
    from ea_psmnet.evaluation.evaluation import evaluate_predictors
    from ea_psmnet.evaluation.pictures import Pictures
    from ea_psmnet.evaluation.predictors import sample_names
    from ea_psmnet.evaluation.protocols import find_protocols
    from ea_psmnet.evaluation.report import EvaluationReport
    from ea_psmnet.evaluation.shares import join
    from ea_psmnet.files import printable
    from ea_psmnet.machine import use_threads
    from ea_psmnet.tables import check_range

    check_range("limit", options.limit, 1, 4096)
    check_range("batch", options.batch, 1, 2**16)
    root = options.root
    if options.data == "synthetic":
        raise ValueError("--data synthetic: write scenes by data render, and give their --root")
    if root is None:
        raise ValueError("nothing to evaluate: give the dataset's folder (--root)")
    protocols = find_protocols(options.protocols)
    use_threads(options.matcher.threads)
    join()
    data = detect_dataset(root) if options.data == "auto" else options.data
    split = options.split or measuring_split(data, root)
    dataset = build_dataset(data, root, split=split, render_pass=options.render_pass)
    predictors = _predictors(options, dataset)
    if earlier is not None:
        earlier.check_comparable([each.label for each in predictors], sample_names(dataset))
    settings = {"data": data, "split": split} | _settings(options)
    pictures = Pictures(
        options.out or Path(),
        [each.label for each in predictors],
        sample_names(dataset),
        sheets=options.sheets,
        error_maps=options.error_maps,
        worst=options.worst,
    )
    evaluations = evaluate_predictors(
        predictors,
        dataset,
        limit=options.limit,
        protocols=protocols,
        batch=options.batch,
        journal=_journal(options, settings, predictors, dataset),
        observer=pictures,
    )
    if not any(each.total.pixels for each in evaluations):
        raise ValueError(
            f"{root}: no pixel has a known disparity below {options.limit}: "
            "python -m ea_psmnet data check tells more"
        )

    def predict(label: str, place: int) -> tuple[StereoSample, NDArray[np.float32]]:
        sample = dataset[place]
        return sample, next(each for each in predictors if each.label == label).predict(sample)

    return EvaluationReport(
        title=printable(root.resolve().name or root),
        evaluations=tuple(evaluations),
        settings=settings,
        pictures=pictures.finish(evaluations, predict),
    )


def _journal(
    options: EvaluationOptions,
    settings: Mapping[str, str],
    predictors: Sequence[Predictor],
    dataset: Sequence[StereoSample],
) -> Journal | None:
    """The journal with everything that measurements depend on; None without `--out`.

    Raises:
        ValueError: The folder has measurements of other settings.
    """
    from ea_psmnet.evaluation.predictors import sample_names
    from ea_psmnet.evaluation.shares import Journal
    from ea_psmnet.store import digest

    if options.out is None or options.root is None:
        return None
    names = sample_names(dataset)
    drawn = [name for name in ("sheets", "error_maps") if getattr(options, name)]
    depends = {
        "root": str(options.root.resolve()),
        "pairs": f"{len(names)} {digest(' '.join(names))}",
        "limit": str(options.limit),
        "protocols": " ".join(options.protocols) or "all",
        "pictures": " ".join(drawn) or "none",
    }
    identities = {f"method {each.label}": each.identity for each in predictors}
    return Journal(options.out / _UNFINISHED, {**settings} | depends | identities)


def _predictors(options: EvaluationOptions, dataset: Sequence[StereoSample]) -> list[Predictor]:
    from ea_psmnet.evaluation.predictors import baseline, saved_predictions
    from ea_psmnet.files import distinct_names
    from ea_psmnet.inference.baselines import BlockMatcher
    from ea_psmnet.inference.matcher import DEFAULT
    from ea_psmnet.models.weights import find_weights

    named = [options.matcher.checkpoint] if options.matcher.checkpoint else []
    weights = [find_weights(path) for path in (*named, *options.checkpoints)]
    if "network" in options.method or not (weights or options.method or options.predictions):
        weights.append(find_weights(DEFAULT))
    for name, wanted in (
        ("confidence", options.confidence),
        ("two-scales", options.matcher.two_scales),
    ):
        if wanted and not weights:
            raise ValueError(f"--{name} is for networks, and there is none: add --method network")
    folders = [folder.resolve() for folder in options.predictions]
    bare = [path.with_suffix("") for path in weights]
    labels = distinct_names([*(weights if len(set(bare)) < len(bare) else bare), *folders])
    search = -(-options.limit // 16) * 16  # OpenCV takes multiples of 16
    return [
        *(_network(options, path, label) for path, label in zip(weights, labels, strict=False)),
        *(
            baseline(BlockMatcher(name, search, fill=options.fill, pad=options.pad))
            for name in dict.fromkeys(options.method)
            if name != "network"
        ),
        *(
            saved_predictions(folder, label, dataset)
            for folder, label in zip(folders, labels[len(weights) :], strict=True)
        ),
    ]


def _network(options: EvaluationOptions, weights: Path, label: str) -> Predictor:
    from ea_psmnet.evaluation.predictors import network
    from ea_psmnet.files import content_hash
    from ea_psmnet.inference.matcher import StereoMatcher

    given = replace(options.matcher, checkpoint=weights)
    matcher = given.predictor()
    identity = f"{content_hash(weights)[:16]}, max disparity {matcher.max_disparity}"
    identity += f", align corners {given.align_corners}, peak reach {given.peak_reach}"
    identity += f", attention {given.attention}"
    if given.two_scales and isinstance(matcher, StereoMatcher):
        label = f"{label}, two scales"
        identity += f", two scales by {matcher.map_for(False).weights}"
    # The map is described beside the weights, which their hash does not cover.
    if options.confidence and isinstance(matcher, StereoMatcher):
        identity += f", confidence {matcher.confidence_map.weights}"
    return network(matcher, label, identity, confidence=options.confidence)


def _settings(options: EvaluationOptions) -> dict[str, str]:
    import cv2
    import numpy as np
    import torch

    from ea_psmnet.evaluation.evaluation import PROTOCOL_BATCH

    return {
        "render pass": options.render_pass,
        "batch": str(options.batch),
        "protocol batch": str(PROTOCOL_BATCH),
        "device": options.matcher.device,
        "precision": options.matcher.precision,
        "torch": str(torch.__version__),
        "OpenCV": str(cv2.__version__),
        "NumPy": np.__version__,
    }
