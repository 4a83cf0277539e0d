"""Ablations of the paper: variants times seeds, trained alike, as mean and deviation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from datasets.builder import build_dataset
from datasets.synthetic import SyntheticScenes, write_sceneflow
from ea_psmnet.files import write_json
from ea_psmnet.records import read_record
from ea_psmnet.reports.ablation_config import MAY_CHANGE, RENDERED, AblationConfig, Question
from ea_psmnet.reports.ablation_run import (
    Run,
    RunResult,
    TestSets,
    base_network,
    finish_run,
    shared_weights,
)
from ea_psmnet.reports.forecast import count_parameters
from ea_psmnet.reports.network_resources import site_volume
from ea_psmnet.reports.variants import parse_variant, slug

__all__ = ["Ablation", "Spread", "ablate", "question_variants"]

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; more are taken for 9, which is
a little too careful."""

_SITES = ("volume", "encoder", "bottleneck", "decoder", "output")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    count: int
    mean: float | None
    """None for no seed."""
    deviation: float | None = None
    """None for fewer than two seeds."""
    interval: tuple[float, float] | None = None
    """Where the mean over all seeds lies with 95 %, by Student's t; None for fewer than two."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of some values."""
        count = len(values)
        if count < 2:
            return cls(count, values[0] if values else None)
        middle, deviation = mean(values), stdev(values)
        reach = _STUDENT[min(count - 1, len(_STUDENT)) - 1] * deviation / math.sqrt(count)
        return cls(count, middle, deviation, (middle - reach, middle + reach))


@dataclass(frozen=True)
class Ablation:
    """All runs so far."""

    question: Question
    config: AblationConfig
    variants: Sequence[str]
    parameters: dict[str, int]
    results: Sequence[RunResult]

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return list(dict.fromkeys(name for r in self.results for name in r.figures))

    def of(self, variant: str) -> list[RunResult]:
        """A variant's runs."""
        return [result for result in self.results if result.variant == variant]

    def values(self, variant: str, test: str, figure: str) -> dict[int, float]:
        """A figure by seed, of runs that have a finite one."""
        found = {r.seed: r.figures.get(test, {}).get(figure) for r in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, variant: str, test: str, figure: str) -> Spread:
        """Over a variant's seeds."""
        return Spread.of(list(self.values(variant, test, figure).values()))

    def difference(self, variant: str, test: str, figure: str) -> Spread:
        """To the first variant, over the seeds that both have, seed by seed."""
        ours, first = (self.values(v, test, figure) for v in (variant, self.variants[0]))
        return Spread.of([ours[seed] - first[seed] for seed in ours if seed in first])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
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
    """The variants of a question, the one that others are compared with first."""
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
    """Train and measure every variant from every seed, all variants of a seed before the next.

    Finished runs are kept, an interrupted one goes on from its last checkpoint.

    Yields:
        The ablation after every run.

    Raises:
        ValueError: an unknown variant, or a folder with an ablation of other settings.
        FileNotFoundError: no dataset at a root.
        ChildProcessError: training ended for another reason than numbers that are not finite.
    """
    variants = list(config.variants) or question_variants(question, config)
    if len({slug(variant) for variant in variants}) < len(variants):
        raise ValueError(f"variants must differ: {', '.join(variants)}")
    networks = {
        text: parse_variant(text, sites=config.sites, base=base_network(config))
        for text in variants
    }
    parameters = {text: count_parameters(network) for text, network in networks.items()}
    others = {n: build_dataset("auto", root, split="test") for n, root in config.tests.items()}
    _claim(question, config)
    for seed in config.seeds:  # what does not fit is told before anything is rendered
        shared_weights(config, seed)
    tests: TestSets = {RENDERED: _rendered(config), **others}
    results: list[RunResult] = []
    bar = tqdm([(variant, seed) for seed in config.seeds for variant in variants], unit="run")
    for variant, seed in bar:
        bar.set_description(f"{variant} seed {seed}")
        run = Run.of(config, variant, seed)
        results.append(finish_run(run, config, config.root or config.out / "scenes", tests))
        yield Ablation(question, config, variants, parameters, tuple(results))


def _claim(question: Question, config: AblationConfig) -> None:
    """Record the settings, or refuse a folder that holds another ablation."""
    path = config.out / "settings.json"
    settings = {"question": question} | config.to_dict()
    remedy = "damaged: delete it to go on with the settings given now, or give another --out"
    recorded = read_record(path, dict[str, Any], remedy=remedy) if path.is_file() else settings
    for name in sorted(settings.keys() - MAY_CHANGE):
        if settings[name] != recorded.get(name):
            raise ValueError(
                f"{config.out}: holds an ablation with {name} {recorded.get(name)}, not "
                f"{settings[name]}: give the same settings or another --out"
            )
    write_json(path, settings)


def _rendered(config: AblationConfig) -> list[Any]:
    """The test pairs, in memory; renders what is missing of them and of the training scenes."""
    scenes = partial(
        SyntheticScenes, seed=0, size=config.scene_size, max_disparity=config.max_disparity
    )
    train = scenes(split="train", count=0 if config.root else config.scenes)
    test = scenes(split="test", count=config.test_scenes)
    folder = config.out / "scenes"
    write_sceneflow(folder, train=train, test=test, workers=config.workers)
    pairs = build_dataset("sceneflow", folder, split="test")
    return [pairs[index] for index in range(len(pairs))]
