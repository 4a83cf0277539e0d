"""One run of an ablation: a variant trained from a seed, and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ea_psmnet.files import atomic_path, write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.efficientnet import EfficientNetFeatures
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import NotFiniteError, load_into, save_model
from ea_psmnet.records import read_record
from ea_psmnet.reports.ablation_config import AblationConfig
from ea_psmnet.reports.evaluation import evaluate
from ea_psmnet.reports.own_process import run_module
from ea_psmnet.reports.variants import parse_variant, slug
from ea_psmnet.sample import StereoSample

__all__ = ["Run", "RunResult", "TestSets", "base_network", "finish_run", "shared_weights"]

TestSets = Mapping[str, Sequence[StereoSample]]
"""Pairs to measure errors on, by name."""


@dataclass(frozen=True)
class Run:
    """What is trained, and where."""

    variant: str
    seed: int
    folder: Path

    @classmethod
    def of(cls, config: AblationConfig, variant: str, seed: int) -> Run:
        """The run of an ablation's folder."""
        return cls(variant, seed, config.out / "runs" / slug(variant) / f"seed-{seed}")


@dataclass(frozen=True)
class RunResult:
    """What came of it."""

    variant: str
    seed: int
    diverged: str | None
    """What training said where it could not go on in finite numbers."""
    seconds: float
    """Of training, since it was last taken up."""
    figures: dict[str, dict[str, float | None]]
    """Errors on each test set; None where one is not finite."""


def finish_run(run: Run, config: AblationConfig, scenes: Path, tests: TestSets) -> RunResult:
    """The result of a run: the one that is kept, or after training it or the rest of it.

    Args:
        run: which.
        config: of the ablation.
        scenes: the folder of the training data.
        tests: what to measure errors on; a kept run is measured on those it lacks.

    Raises:
        ChildProcessError: training ended for another reason than numbers that are not finite.
        ValueError: the kept result is damaged.
    """
    path = run.folder / "result.json"
    if path.is_file():
        result = _kept(path, run)
    else:
        start = time.monotonic()
        diverged = _train(run, config, scenes)
        result = RunResult(run.variant, run.seed, diverged, time.monotonic() - start, {})
    missing = {name: pairs for name, pairs in tests.items() if name not in result.figures}
    if result.diverged is None and missing:
        result = _measured(result, run, config, missing)
    write_json(path, asdict(result))
    return result


def _kept(path: Path, run: Run) -> RunResult:
    remedy = "damaged: delete it, and what was trained is measured again"
    result = read_record(path, RunResult, remedy=remedy)
    if (result.variant, result.seed) != (run.variant, run.seed):
        raise ValueError(f"{path}: is of {result.variant}, seed {result.seed}; {remedy}")
    return result


def _measured(result: RunResult, run: Run, config: AblationConfig, tests: TestSets) -> RunResult:
    weights = run.folder / "training" / "model.safetensors"
    try:
        matcher = StereoMatcher.load(weights, device=config.device)
        figures = {name: _figures(matcher, pairs, name) for name, pairs in tests.items()}
    except NotFiniteError as error:
        return replace(result, diverged=str(error))
    return replace(result, figures=result.figures | figures)


def _figures(
    matcher: StereoMatcher, pairs: Sequence[StereoSample], name: str
) -> dict[str, float | None]:
    figures = evaluate(matcher, pairs, name).total.figures()
    return {key: value if math.isfinite(value) else None for key, value in figures.items()}


def _train(run: Run, config: AblationConfig, scenes: Path) -> str | None:
    """Train in a process of its own; returns what it said where numbers were not finite."""
    command = ["train", *_arguments(run, config, scenes)]
    log = run.folder / "train.log"
    with log.open("a") as file:
        ended = run_module("ea_psmnet", command, stdout=file, stderr=file).returncode
    if ended == 0:
        return None
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    if ended == 2 and "finite" in last:
        return last.removeprefix("error: ")
    raise ChildProcessError(
        f"{run.folder}: training ended with exit status {ended} ({last}); {log} has more; "
        "the same command goes on from there"
    )


def _arguments(run: Run, config: AblationConfig, scenes: Path) -> list[str]:
    """Of `train`: everything that variants share, and this one's network."""
    options: dict[str, Any] = {
        "network": _network_file(run, config),
        "init": shared_weights(config, run.seed),
        "data": config.data if config.root else "sceneflow",
        "root": scenes,
        "crop": config.crop,
        "max-disparity": config.max_disparity,
        "batch": config.batch,
        # Chosen by memory it could differ between variants, and with it batch normalisation.
        "micro-batch": config.batch,
        "lr": config.lr,
        "schedule": "one-cycle",
        "steps": config.steps,
        "save-every": max(1, config.steps // 10),
        "seed": run.seed,
        "precision": config.precision,
        "augment": config.augment,
        "cross-entropy": config.cross_entropy,
        "device": config.device,
        "workers": config.workers,
        "out": run.folder / "training",
    }
    return [
        str(word)
        for name, value in options.items()
        for word in (f"--{name}", *(value if isinstance(value, tuple) else (value,)))
    ]


def _network_file(run: Run, config: AblationConfig) -> Path:
    network = parse_variant(run.variant, sites=config.sites, base=base_network(config))
    path = run.folder / "network.json"
    write_json(path, network.to_dict())
    return path


def base_network(config: AblationConfig) -> PSMNetConfig:
    """The network without attention.

    Raises:
        ValueError: there is no such preset, or it does not go with the disparities.
    """
    chosen = preset(config.preset)
    return replace(
        chosen,
        width=chosen.width if config.width is None else config.width,
        attention="none",
        attention_sites=(),
        attention_options={},
        max_disparity=config.max_disparity,
    )


def shared_weights(config: AblationConfig, seed: int) -> Path:
    """What all variants of a seed start from: the network without attention, made once.

    Raises:
        FileNotFoundError: there is no checkpoint where `init` says.
        ValueError: it does not fit the network.
    """
    path = config.out / "initial" / f"seed-{seed}.safetensors"
    if not path.is_file():
        torch.manual_seed(seed)
        model = build_model(base_network(config))
        if config.init is not None:
            load_into(model, config.init, attention=False)
        elif isinstance(model.features, EfficientNetFeatures):
            model.features.load_imagenet()
        with atomic_path(path) as temporary:
            save_model(temporary, model)
    return path
