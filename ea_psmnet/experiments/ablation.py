"""Ablations: variants times seeds, trained alike, as mean and deviation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ea_psmnet.datasets.builder import build_dataset, measuring_pairs
from ea_psmnet.datasets.synthetic import SyntheticScenes, write_sceneflow
from ea_psmnet.evaluation.evaluation import evaluate
from ea_psmnet.experiments.ablation_config import MAY_CHANGE, RENDERED, AblationConfig, Question
from ea_psmnet.experiments.networks import count_parameters, parse_variant, site_volume, slug
from ea_psmnet.experiments.own_process import run_program
from ea_psmnet.files import write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.efficientnet import EfficientNetFeatures
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import NotFiniteError, load_into, load_state, save_model
from ea_psmnet.progress import Progress
from ea_psmnet.sample import StereoSample
from ea_psmnet.store import Store
from ea_psmnet.tables import markdown_table

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; more count as 9, for which the
interval is slightly too wide."""

_SITES = ("volume", "encoder", "bottleneck", "decoder", "output")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    count: int
    mean: float | None
    """None without seeds."""
    deviation: float | None = None
    """None for fewer than two seeds."""
    interval: tuple[float, float] | None = None
    """The 95 % interval of the mean, by Student's t; None for fewer than two seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the spread of values."""
        count = len(values)
        if count < 2:
            return cls(count, values[0] if values else None)
        middle, deviation = mean(values), stdev(values)
        reach = _STUDENT[min(count - 1, len(_STUDENT)) - 1] * deviation / math.sqrt(count)
        return cls(count, middle, deviation, (middle - reach, middle + reach))


@dataclass(frozen=True)
class Ablation:
    """An ablation with all runs so far."""

    question: Question
    config: AblationConfig
    variants: Sequence[str]
    parameters: dict[str, int]
    results: Sequence[RunResult]

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        measured = {name for result in self.results for name in result.figures}
        return [name for name in (RENDERED, *self.config.tests) if name in measured]

    def of(self, variant: str) -> list[RunResult]:
        """The runs of a variant."""
        return [result for result in self.results if result.variant == variant]

    def values(self, variant: str, test: str, figure: str) -> dict[int, float]:
        """A figure by seed, for runs where it is finite."""
        found = {r.seed: r.figures.get(test, {}).get(figure) for r in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, variant: str, test: str, figure: str) -> Spread:
        """The spread of a figure over a variant's seeds."""
        return Spread.of(list(self.values(variant, test, figure).values()))

    def difference(self, variant: str, test: str, figure: str) -> Spread:
        """The spread of differences from the first variant, over the seeds that both have."""
        ours, first = (self.values(v, test, figure) for v in (variant, self.variants[0]))
        return Spread.of([ours[seed] - first[seed] for seed in ours if seed in first])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "question": self.question,
            "settings": self.config.to_dict(),
            "runs": [asdict(result) for result in self.results],
            "variants": [
                {
                    "variant": variant,
                    "parameters": self.parameters[variant],
                    "diverged": sum(r.diverged is not None for r in self.of(variant)),
                    "figures": {test: self._figures(variant, test) for test in self.tests},
                }
                for variant in self.variants
            ],
        }

    def _figures(self, variant: str, test: str) -> dict[str, dict[str, Any]]:
        names = dict.fromkeys(name for r in self.results for name in r.figures.get(test, {}))
        return {
            name: {
                "spread": asdict(self.spread(variant, test, name)),
                "difference": asdict(self.difference(variant, test, name)),
            }
            for name in names
        }


def question_variants(question: Question, config: AblationConfig) -> list[str]:
    """Return the variants of a question; the others are compared with the first."""
    if question == "normalisation":
        return [f"efficient,normalisation={name}" for name in ("softmax", "scaling", "none")]
    if question == "sites":
        pairs = ["encoder+decoder", "encoder+bottleneck+decoder", "+".join(_SITES)]
        return ["baseline", *(f"efficient@{sites}" for sites in (*_SITES, *pairs))]
    if question == "key-channels":
        network = parse_variant("efficient", sites=config.sites, base=base_network(config))
        channels = min(site_volume(network, s, (16, 16))[1] for s in network.attention_sites)
        counts = (channels // 2, channels // 8, channels // 4, channels)
        return [f"efficient,key_channels={count}" for count in counts]
    if question == "positions":
        return ["baseline", "efficient", *(f"efficient,positions={n}" for n in (1, 3))]
    if question == "heads":
        return [f"efficient,heads={count}" for count in (1, 2, 4, 8)]
    return ["baseline", "efficient", "non-local-sdpa", "focused", "external", "hydra"]


def ablate(question: Question, config: AblationConfig) -> Iterator[Ablation]:
    """Train and evaluate every variant with every seed, all variants of a seed before the next.

    Finished runs are kept; an interrupted one goes on from its last checkpoint.

    Yields:
        The ablation after every run.

    Raises:
        ValueError: A variant is unknown, or the folder has an ablation of other settings.
        FileNotFoundError: There is no dataset at a root.
        ChildProcessError: Training ended for another reason than numbers that are not finite.
    """
    variants = list(config.variants) or question_variants(question, config)
    if len({slug(variant) for variant in variants}) < len(variants):
        raise ValueError(f"variants must differ: {', '.join(variants)}")
    networks = {
        text: parse_variant(text, sites=config.sites, base=base_network(config))
        for text in variants
    }
    parameters = {text: count_parameters(network) for text, network in networks.items()}
    others = {name: measuring_pairs("auto", root) for name, root in config.tests.items()}
    if config.root is not None:  # one without training pairs is refused before anything is rendered
        build_dataset(config.data, config.root)
    settings = {"question": question} | config.to_dict()
    Store(config.out, settings, may_change=MAY_CHANGE).claim()
    for seed in config.seeds:  # weights that do not fit are refused before anything is rendered
        shared_weights(config, seed)
    tests: TestSets = {RENDERED: _rendered(config), **others}
    results: list[RunResult] = []
    bar = Progress([(variant, seed) for seed in config.seeds for variant in variants], unit="run")
    for variant, seed in bar:
        bar.set_description(f"{variant} seed {seed}")
        folder = config.out / "runs" / slug(variant) / f"seed-{seed}"
        run = Run(variant, seed, folder)
        results.append(finish_run(run, config, config.root or config.out / "scenes", tests))
        yield Ablation(question, config, variants, parameters, tuple(results))


def _rendered(config: AblationConfig) -> list[Any]:
    """Render the training and test scenes that are missing; returns the test pairs, in memory."""
    scenes = partial(
        SyntheticScenes, seed=0, size=config.scene_size, max_disparity=config.max_disparity
    )
    train = scenes(split="train", count=0 if config.root else config.scenes)
    test = scenes(split="test", count=config.test_scenes)
    folder = config.out / "scenes"
    write_sceneflow(folder, train=train, test=test, workers=config.workers)
    pairs = build_dataset("sceneflow", folder, split="test")
    return [pairs[index] for index in range(len(pairs))]


# One run ------------------------------------------------------------------------------------------

TestSets = Mapping[str, Sequence[StereoSample]]
"""Test pairs by the name of the set."""

_RESULT = "result.json"
"""File of a run's result."""


@dataclass(frozen=True)
class Run:
    """A training run of a variant."""

    variant: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class RunResult:
    """Result of a run."""

    variant: str
    seed: int
    diverged: str | None
    """Message of a training that ended because numbers were not finite."""
    seconds: float
    """Seconds of training since it was last started."""
    figures: dict[str, dict[str, float | None]]
    """Errors on every test set; None if an error is not finite."""
    roots: dict[str, str] = field(default_factory=dict)
    """Folder of every test set that was not rendered, by its name."""


def finish_run(run: Run, config: AblationConfig, scenes: Path, tests: TestSets) -> RunResult:
    """Return the result of a run, after any training and evaluation that it lacks.

    Args:
        run: The run.
        config: Configuration of the ablation.
        scenes: Folder of the training data.
        tests: Test sets; a finished run is evaluated on those that it lacks.

    Raises:
        ChildProcessError: Training ended for another reason than numbers that are not finite.
        ValueError: The stored result is damaged.
    """
    store = Store(run.folder)
    remedy = "damaged: delete it, and the trained network is measured again"
    result = store.read(_RESULT, RunResult, remedy)
    if result and (result.variant, result.seed) != (run.variant, run.seed):
        path = store.folder / _RESULT
        raise ValueError(f"{path}: is of {result.variant}, seed {result.seed}; {remedy}")
    if result is None:
        start = time.monotonic()
        diverged = _train(run, config, scenes)
        result = RunResult(run.variant, run.seed, diverged, time.monotonic() - start, {})
    roots = {name: str(root.resolve()) for name, root in config.tests.items()}
    missing = {
        name: pairs
        for name, pairs in tests.items()
        if name not in result.figures or result.roots.get(name) != roots.get(name)
    }
    if result.diverged is None and missing:
        result = _measured(result, run, config, missing)
        result = replace(result, roots=result.roots | roots)
    store.write(_RESULT, asdict(result))
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
    """Train in a separate process; return its message if numbers were not finite."""
    command = ["train", *_arguments(run, config, scenes)]
    log = run.folder / "train.log"
    with log.open("a") as file:
        ended = run_program("ea_psmnet", command, stdout=file, stderr=file).returncode
    if ended == 0:
        return None
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    if ended == 2 and "not finite" in last:
        return last.removeprefix("error: ")
    raise ChildProcessError(
        f"{run.folder}: training ended with exit status {ended} ({last}); {log} has more; "
        "the same command goes on from there"
    )


def _arguments(run: Run, config: AblationConfig, scenes: Path) -> list[str]:
    """The arguments of `train`: those that all variants share, and the network."""
    network = run.folder / "network.json"
    base = base_network(config)
    write_json(network, parse_variant(run.variant, sites=config.sites, base=base).to_dict())
    options: dict[str, Any] = {
        "network": network,
        "init": shared_weights(config, run.seed),
        "data": config.data if config.root else "sceneflow",
        "root": scenes,
        "crop": config.crop,
        "max-disparity": config.max_disparity,
        "batch": config.batch,
        # If chosen by memory, it and batch normalisation could differ between variants.
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


def base_network(config: AblationConfig) -> PSMNetConfig:
    """Return the network without attention, whose corner alignment is that of the initial weights.

    Raises:
        FileNotFoundError: The checkpoint `init` does not exist.
        ValueError: There is no such preset, or it does not allow these disparities.
    """
    chosen = preset(config.preset)
    inherited = config.init is not None and load_state(config.init)[0].align_corners
    return replace(
        chosen,
        align_corners=chosen.align_corners or inherited,
        width=chosen.width if config.width is None else config.width,
        attention="none",
        attention_sites=(),
        attention_options={},
        max_disparity=config.max_disparity,
    )


def shared_weights(config: AblationConfig, seed: int) -> Path:
    """Return the weights that all variants of a seed start from: the network without attention.

    Raises:
        FileNotFoundError: The checkpoint `init` does not exist.
        ValueError: It does not fit the network.
    """
    path = config.out / "initial" / f"seed-{seed}.safetensors"
    if not path.is_file():
        torch.manual_seed(seed)
        model = build_model(base_network(config))
        if config.init is not None:
            load_into(model, config.init, attention=False)
        elif isinstance(model.features, EfficientNetFeatures):
            model.features.load_imagenet()
        save_model(path, model)
    return path


# As text ------------------------------------------------------------------------------------------

_SHOWN = ("EPE", "bad-1", "bad-3")


def ablation_markdown(ablation: Ablation) -> str:
    """An ablation as Markdown: a table for every test set, and runs that diverged."""
    parts = [f"# Ablation: {ablation.question}", _introduction(ablation)]
    for test in ablation.tests:
        rows = [_row(ablation, variant, test) for variant in ablation.variants]
        parts += [f"## Errors: {test}", markdown_table(rows)]
    notes = [f"- {note}" for note in _diverged(ablation)]
    if notes:
        parts += ["## Diverged", "\n".join(notes)]
    return "\n\n".join(parts)


def _introduction(ablation: Ablation) -> str:
    config = ablation.config
    source = str(config.root) if config.root else f"{config.scenes} rendered scenes"
    start = f", all from {config.init.name} without its attention" if config.init else ""
    width = "" if config.width is None else f" at width {config.width:g}"
    return (
        f"{config.steps} steps of {config.batch} crops of {config.crop[0]} x {config.crop[1]} from "
        f"{source}{start}, one-cycle to {config.lr:g}, {config.max_disparity} disparities, network "
        f"{config.preset}{width}; attention at {config.sites} if a variant names no place. "
        "Mean ± sample standard deviation over n seeds, those whose EPE is finite. All variants of "
        "a seed start from the same weights and see the same samples in the same order, so the "
        f"differences to {ablation.variants[0]} are taken seed by seed; their mean's interval is "
        "Student's. EPE in pixels, bad-1 and bad-3 in percent."
    )


def _row(ablation: Ablation, variant: str, test: str) -> dict[str, object]:
    runs = ablation.of(variant)
    spreads = {name: ablation.spread(variant, test, name) for name in _SHOWN}
    first = variant == ablation.variants[0]
    difference = None if first else ablation.difference(variant, test, "EPE")
    return {
        "variant": variant,
        "parameters": f"{ablation.parameters[variant]:,}",
        "n": f"{spreads['EPE'].count} of {len(runs)}",
        **{name: _spread(spread) for name, spread in spreads.items()},
        "difference of EPE": "-" if difference is None else _spread(difference, signed=True),
        "95 % interval": "-" if difference is None else _interval(difference),
    }


def _spread(spread: Spread, *, signed: bool = False) -> str:
    """Format as `1.234 ± 0.056`; a dash for what is unknown."""
    if spread.mean is None:
        return "-"
    value = f"{spread.mean:+.3f}" if signed else f"{spread.mean:.3f}"
    return value if spread.deviation is None else f"{value} ± {spread.deviation:.3f}"


def _interval(spread: Spread) -> str:
    """Format as `-0.123 to +0.045`; a dash for fewer than two seeds."""
    return " to ".join(f"{end:+.3f}" for end in spread.interval) if spread.interval else "-"


def _diverged(ablation: Ablation) -> Iterator[str]:
    for result in ablation.results:
        run = f"{result.variant}, seed {result.seed}"
        if result.diverged is not None:
            yield f"{run}: {result.diverged}"
        for test, figures in result.figures.items():
            if figures.get("EPE") is None:
                yield f"{run}: its predictions on {test} are not finite"
