"""The datasets of a run: what to train on and what to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.augment import AUGMENTATIONS
from datasets.builder import build_dataset, detect_dataset
from datasets.names import Split
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import TrainingSamples

__all__ = ["SCENE_FLOW_SAMPLES", "training_samples", "validation_samples"]

SCENE_FLOW_SAMPLES = 35_454
"""Training pairs of Scene Flow: the length of an epoch of rendered scenes, too."""

_VALIDATION_SCENES = 20
_HAVE_TEST_SPLIT = ("sceneflow", "instereo2k", "synthetic")
_HAVE_PASSES = ("auto", "sceneflow", "sintel")


def training_samples(config: TrainingConfig) -> tuple[TrainingSamples, int]:
    """The samples of a run, each by its position, and the number of steps.

    Raises:
        FileNotFoundError: a dataset is not where it should be.
        ValueError: its first image is too small for the crop, or an option does not suit it.
    """
    wanted = config.sources()
    onefold = {
        number: _read(config, source.name, source.root, "train")
        for number, source in enumerate(wanted)
        if source.name != "synthetic"
    }
    rendered = len(wanted) - len(onefold)
    epoch = sum(map(len, onefold.values())) + rendered * SCENE_FLOW_SAMPLES
    steps = config.steps or max(1, config.epochs * epoch // config.batch)
    recipe = AUGMENTATIONS[config.augment]
    samples = TrainingSamples(
        [onefold[n] if n in onefold else _scenes(config, steps) for n in range(len(wanted))],
        config.crop,
        config.seed,
        weights=[source.weight for source in wanted],
        recipe=replace(recipe, mirror=0.5) if config.mirror else recipe,
    )
    samples.check()
    return samples, steps


def validation_samples(config: TrainingConfig) -> Sequence[StereoSample]:
    """The pairs to validate on: a dataset's test split, or all pairs of a folder that was named.

    Raises:
        FileNotFoundError: it is not where it should be.
        ValueError: the training data have no test split and no other data were named.
    """
    name: str = config.validate_data or config.sources()[0].name
    if name == "synthetic":
        return build_dataset(
            "synthetic",
            split="test",
            seed=config.seed,
            size=config.scene_size or config.crop,
            count=config.validate_count or _VALIDATION_SCENES,
            max_disparity=config.max_disparity,
        )
    root = config.validate_root or _training_root(config, name)
    if name == "auto" and root is not None:
        name = detect_dataset(root)
    if config.validate_root is None and name not in _HAVE_TEST_SPLIT:
        raise ValueError(f"data '{name}' has no test split: name --validate-root, other pairs")
    return _read(config, name, root, "test" if name in _HAVE_TEST_SPLIT else "train")


def _training_root(config: TrainingConfig, name: str) -> Path | None:
    roots = [source.root for source in config.sources() if source.name == name]
    if not roots:
        raise ValueError(f"validate_data '{name}' needs --validate-root, its folder")
    return roots[0]


def _read(
    config: TrainingConfig, name: str, root: Path | None, split: Split
) -> Sequence[StereoSample]:
    """A dataset on disk; of a mixture, parts without render passes have no use for one."""
    render_pass = config.render_pass if name in _HAVE_PASSES or not config.mix else "clean"
    return build_dataset(name, root or "", split=split, render_pass=render_pass)


def _scenes(config: TrainingConfig, steps: int) -> Sequence[StereoSample]:
    """As many scenes as the run can draw: none comes twice."""
    return build_dataset(
        "synthetic",
        seed=config.seed,
        size=config.scene_size or config.crop,
        count=steps * config.batch,
        max_disparity=config.max_disparity,
    )
