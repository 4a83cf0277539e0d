"""The configuration of a training run, without importing torch; the defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ea_psmnet.datasets.names import DatasetName, RenderPass
from ea_psmnet.machine import Device
from ea_psmnet.models.config import PSMNetConfig, preset, read_config
from ea_psmnet.tables import check_choice, check_range, whole_number

Normalisation = Literal["batch", "sync", "frozen", "group"]
CrossEntropyTarget = Literal["linear", "adaptive"]
Schedule = Literal["constant", "step", "cosine", "one-cycle"]
TrainingPrecision = Literal["auto", "bf16", "fp16", "fp32"]

_MOST_STEPS = 10**9
_RANGES = {
    "batch": (1, 2**16),
    "micro_batch": (1, 2**16),
    "epochs": (1, 10**6),
    "steps": (1, _MOST_STEPS),
    "save_every": (1, _MOST_STEPS),
    "keep": (1, 10**6),
    "validate_every": (1, _MOST_STEPS),
    "validate_count": (1, 10**9),
    "workers": (0, 1024),
    "seed": (0, 2**32 - 1),
    "max_disparity": (16, 4096),
}
"""Ranges of the integers: values outside them would overflow, or the run would never end."""
_MOST_SIDE = 2**14


@dataclass(frozen=True)
class Source:
    """A dataset that training samples are drawn from."""

    name: DatasetName
    root: Path | None
    weight: float


def parse_source(text: str) -> Source:
    """Parse NAME:ROOT:WEIGHT; the root of `synthetic` is empty.

    Raises:
        ValueError: The text has another form, an unknown name or an impossible weight.
    """
    name, _, rest = text.partition(":")
    root, separator, number = rest.rpartition(":")
    if not separator:
        raise ValueError(f"mix '{text}': expected NAME:ROOT:WEIGHT, as sceneflow:/data:3")
    check_choice("dataset", name, get_args(DatasetName))
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"mix '{text}': the weight '{number}' must be a positive number")
    return Source(cast(DatasetName, name), Path(root) if root else None, weight)


# Options, in the groups that the help of `train` shows --------------------------------------------


@dataclass(frozen=True)
class _Out:
    out: Path
    """Run folder for checkpoints, weights and logs. The same command continues a run."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Training data."""

    data: DatasetName = "sceneflow"
    """Dataset; `synthetic` renders an endless stream of scenes during training."""
    root: Path | None = None
    """Folder of the dataset; not needed for `synthetic`."""
    mix: tuple[str, ...] = ()
    """Train on several datasets instead, each given as NAME:ROOT:WEIGHT, for example
    sceneflow:/data/SceneFlow:3 synthetic::1. Samples are drawn in proportion to the weights."""
    render_pass: RenderPass = "clean"
    """Which rendering to read from datasets that have two."""
    augment: Literal["none", "robust"] = "none"
    """Augmentation: `none` is a random crop; `robust` adds scaling, tilt, colour jitter and noise,
    and mirrors half of the samples whose right view has ground truth."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network and initial weights."""

    preset: str = "ea-psmnet"
    """Network: light, ea-light or nonlocal-light; psmnet, ea-psmnet or nonlocal-psmnet, each also
    with -small."""
    network: Path | None = None
    """Network as a JSON file with the fields of `PSMNetConfig`, instead of a preset; set its
    `align_corners` to true for an --init that was trained with torch 0.4 (2018)."""
    attention_sites: tuple[str, ...] = ()
    """Where the preset's attention is placed instead of its default sites, for example
    bottleneck."""
    normalisation: Normalisation = "batch"
    """Normalisation: batch statistics of each process's micro-batch (batch), of the micro-batches
    of all processes (sync), the fixed statistics of --init (frozen), or group normalisation, which
    is independent of the batch (group)."""
    imagenet: bool = True
    """Initialise EfficientNet features with ImageNet weights, unless --init gives weights."""
    init: Path | None = None
    """Initial weights: a .safetensors file, an original PSMNet .tar file, a run folder, or the name
    of bundled weights. Attention modules that they lack are initialised as the identity."""
    max_disparity: int = 192
    """Number of disparities to search, in pixels; a multiple of 16."""


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions:
    """Batches, loss and optimisation."""

    crop: tuple[int, int] = (256, 512)
    """Height and width of the random crop, multiples of 16."""
    scene_size: tuple[int, int] | None = None
    """Height and width of rendered scenes, from which crops are taken; default: the crop size."""
    batch: int = 24
    """Samples per step: micro-batch x accumulation x processes."""
    micro_batch: int | None = None
    """Samples that a process holds at once; default: as many as fit into memory."""
    lr: float = 2e-3
    """Learning rate of Adam (betas 0.9 and 0.999)."""
    schedule: Schedule = "constant"
    """Learning rate schedule: `step` multiplies the rate by --decay at each of --milestones,
    `cosine` decays it to zero, `one-cycle` warms up to it in the first twentieth of the run and
    then decays to zero."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the run after which `step` lowers the rate."""
    decay: float = 0.1
    """Factor of the `step` schedule."""
    cross_entropy: float = 0.0
    """Weight of a cross-entropy over the disparity distribution of each classifier, at 1/4
    resolution, which is added to its smooth L1 loss; 0.3 is sensible; the published loss has
    none."""
    cross_entropy_target: CrossEntropyTarget = "linear"
    """Target distribution of the cross-entropy: `linear` divides each pixel's disparity between
    the two nearest levels, `adaptive` is a Laplacian around each surface of a cell (ADL)."""
    likelihood: float = 0.0
    """Weight of the negative log-likelihood of the ground truth under the cells from which a
    learned head upsamples, for sharper edges; 0.3 is sensible."""
    clip: float | None = None
    """Clip the gradient norm to this value."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, for example 0.999, which is then what
    is validated and saved."""
    epochs: int = 100
    """Passes over the dataset. An epoch of `synthetic` has as many samples as Scene Flow, 35,454;
    one of a mixture has as many as its datasets together."""
    steps: int | None = None
    """Number of steps to train for, instead of --epochs."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Device, precision and speed."""

    precision: TrainingPrecision = "auto"
    """Precision of the convolutions; auto is bf16 where the device is fast at it; fp16 uses loss
    scaling."""
    checkpointing: bool = False
    """Recompute the hourglasses in the backward pass (activation checkpointing) to save memory."""
    compile: bool = False
    """Compile the network with torch.compile; requires a C++ compiler on CPUs."""
    device: Device = "auto"
    """Device to train on."""
    workers: int = 2
    """Processes that load or render samples; 0 loads them in the training process."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Checkpoints, validation and safety."""

    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Number of most recent checkpoints to keep."""
    validate_every: int | None = None
    """Steps between validations; the best weights are kept as best.safetensors."""
    validate_data: DatasetName | None = None
    """Dataset to validate on; default: the test split of the training data, with --mix of
    its first dataset."""
    validate_root: Path | None = None
    """Folder of the dataset to validate on."""
    validate_count: int | None = None
    """Number of images to validate on, spread evenly over the dataset; default: all."""
    memory_check: bool = True
    """Refuse to start a run whose estimated memory is not available."""
    seed: int = 0
    """Seed of the initial weights, the data order and the crops."""


@dataclass(frozen=True)
class TrainingConfig(
    RunOptions, MachineOptions, OptimisationOptions, NetworkOptions, DataOptions, _Out
):
    """The configuration of one training run.

    The groups are base classes, so that all options are attributes of one flat object; fields come
    in the order of the groups, from the last base to the first.

    Raises:
        ValueError: A value is out of range, or two values do not go together; the message says
            what to change.
    """

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name)))
                check_range(name, getattr(self, name), low, high)
        self._check_optimisation()
        self._check_sizes()
        self._check_data()
        if self.normalisation == "frozen" and self.init is None:
            raise ValueError("normalisation 'frozen' keeps the statistics of --init: name one")

    def _check_optimisation(self) -> None:
        for name in ("lr", "clip", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, not {self.ema}: 0.999 is usual")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones are fractions between 0 and 1, not {self.milestones}")
        for name, needed, used in (
            ("milestones", "--schedule step", self.schedule == "step"),
            ("decay", "--schedule step", self.schedule == "step"),
            ("cross_entropy_target", "--cross-entropy", self.cross_entropy > 0),
        ):
            if getattr(self, name) != getattr(OptimisationOptions, name) and not used:
                raise ValueError(f"{name} has no effect without {needed}")
        for name in ("cross_entropy", "likelihood"):
            if not 0 <= (weight := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {weight}")

    def _check_sizes(self) -> None:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro-batch {self.micro_batch}"
            )
        for name in ("crop", "scene_size"):
            if getattr(self, name) is not None:
                sides = tuple(whole_number(name, side) for side in getattr(self, name))
                object.__setattr__(self, name, sides)
                for side in sides:
                    check_range(f"a side of {name}", side, 16, _MOST_SIDE)
        if any(side % 16 for side in self.crop):
            raise ValueError(f"crop sides must be multiples of 16, not {self.crop}")
        if self.max_disparity > self.crop[1]:
            raise ValueError(
                f"max disparity {self.max_disparity} is wider than the crop ({self.crop[1]}): "
                "lower it or widen the crop"
            )

    def _check_data(self) -> None:
        if self.mix and (self.root is not None or self.data != "sceneflow"):
            raise ValueError(
                "--mix names its datasets and their folders: leave out --data and --root"
            )
        for source in self.sources():
            if source.root is None and source.name != "synthetic":
                fix = f"--root, its folder, or --mix {source.name}:FOLDER:WEIGHT"
                raise ValueError(f"data '{source.name}' needs {fix}")
        rendered = [source for source in self.sources() if source.name == "synthetic"]
        if any(source.root is not None for source in rendered):
            raise ValueError("data 'synthetic' is rendered and has no folder: leave out its root")
        if self.scene_size and not rendered and self.validate_data != "synthetic":
            raise ValueError("scene_size has no effect without data 'synthetic'")
        wanted = ("validate_data", "validate_root", "validate_count")
        given = [name for name in wanted if getattr(self, name) is not None]
        if given and self.validate_every is None:
            raise ValueError(f"{given[0]} has no effect without --validate-every")

    def base_network(self) -> PSMNetConfig:
        """The preset, or the network that the file `network` describes.

        Raises:
            ValueError: The preset is unknown, or the file describes no network.
            FileNotFoundError: There is no such file.
        """
        return preset(self.preset) if self.network is None else read_config(self.network)

    def sources(self) -> tuple[Source, ...]:
        """The datasets to draw samples from, with their weights."""
        if self.mix:
            return tuple(parse_source(text) for text in self.mix)
        return (Source(self.data, self.root, 1.0),)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values for JSON."""
        return {name: plain(value) for name, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """Convert paths and tuples to texts and lists, for JSON."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
