"""The settings of a training run, without importing torch; the defaults are the paper's."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from datasets.names import DatasetName, RenderPass
from ea_psmnet.machine import Device
from ea_psmnet.models.config import PSMNetConfig, preset, read_config
from ea_psmnet.tables import check_range
from ea_psmnet.training.mixture import Source, parse_source

__all__ = ["Normalisation", "Schedule", "TrainingConfig", "TrainingPrecision"]

Normalisation = Literal["batch", "sync", "frozen", "group"]
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
    "max_skipped": (1, _MOST_STEPS),
    "workers": (0, 1024),
    "seed": (0, 2**32 - 1),
    "max_disparity": (16, 4096),
}
"""Of whole numbers: what lies beyond would overflow, or never end."""
_MOST_SIDE = 2**14


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Raises:
        ValueError: a value is out of range or two do not go together; the message says what to do.
    """

    out: Path
    """Run folder: checkpoints, weights, TensorBoard logs. The same command continues a run."""
    data: DatasetName = "sceneflow"
    """Dataset; `synthetic` renders endless scenes while training."""
    root: Path | None = None
    """Folder of the dataset; not needed for `synthetic`."""
    mix: tuple[str, ...] = ()
    """Several datasets instead, each NAME:ROOT:WEIGHT, as sceneflow:/data/SceneFlow:3 synthetic::1;
    the weights say how often each is drawn from."""
    render_pass: RenderPass = "clean"
    """Which of two renderings, of datasets that have two."""
    augment: Literal["none", "robust"] = "none"
    """Changes of the samples: a random crop alone, or also scale, tilt, colours and noise."""
    mirror: bool = False
    """Mirror half the samples whose right view has truth; `robust` does so in any case."""
    preset: str = "ea-psmnet"
    """Network: psmnet, ea-psmnet or nonlocal-psmnet, each also with -small."""
    network: Path | None = None
    """A network as JSON instead of a preset: the fields of `PSMNetConfig`."""
    attention_sites: tuple[str, ...] = ()
    """Places of the preset's attention instead of its own, as bottleneck."""
    normalisation: Normalisation = "batch"
    """Statistics of each process's micro-batch, of all processes' (sync), those of --init (frozen),
    or group normalisation, which does not depend on the batch."""
    init: Path | None = None
    """Start from these weights, an original PSMNet's .tar included; attention modules they lack
    start as the identity."""
    align_corners: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """How upsampling aligns; true for --init of torch 0.4 (2018); default: what --init states."""
    max_disparity: int = 192
    """Disparities searched, in pixels; a multiple of 16."""
    crop: tuple[int, int] = (256, 512)
    """Height and width of the random crop, multiples of 16."""
    scene_size: tuple[int, int] | None = None
    """Height and width of rendered scenes, from which the crops are cut; default: the crop's."""
    batch: int = 24
    """Samples a step: micro-batch x accumulation x processes."""
    micro_batch: int | None = None
    """Samples a process holds at once; default: the most that fits its memory."""
    lr: float = 2e-3
    """Learning rate of Adam (0.9, 0.999)."""
    schedule: Schedule = "constant"
    """Course of the learning rate: `step` multiplies it by --decay at each of --milestones,
    `cosine` falls to zero, `one-cycle` rises to it and falls to zero."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of the run after which `step` lowers the rate."""
    decay: float = 0.1
    """Factor of `step`."""
    loss_weights: tuple[float, float, float] = (0.5, 0.7, 1.0)
    """Of the three classifiers, in network order."""
    cross_entropy: float = 0.0
    """Factor of the cross-entropy of each classifier's distribution over disparities, at 1/4
    resolution, added to its smooth L1 loss: 0.3 is sensible; the published loss has none."""
    clip: float | None = None
    """Scale gradients down to this norm where theirs is larger."""
    ema: float | None = None
    """Save and validate an exponential moving average of the weights with this decay, as 0.999."""
    epochs: int = 100
    """Passes over the dataset; one of `synthetic` is as long as Scene Flow's, 35,454, and one of a
    mixture as long as its parts together."""
    steps: int | None = None
    """Stop after this many steps instead."""
    precision: TrainingPrecision = "auto"
    """Arithmetic of the convolutions; auto is bf16 where the processor is fast at it; fp16 scales
    the loss."""
    checkpointing: bool = False
    """Compute the hourglasses again in the backward pass instead of keeping them: less memory."""
    compile: bool = False
    """Compile the network with torch.compile first; needs a C++ compiler on CPUs."""
    channels_last: bool = True
    """Keep channels innermost in memory, which convolutions are faster at."""
    device: Device = "auto"
    """Where to train."""
    workers: int = 2
    """Processes that load or render samples; 0 does it in between the steps."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep, the newest."""
    validate_every: int | None = None
    """Steps between validations; the best weights are kept as best.safetensors."""
    validate_data: DatasetName | None = None
    """Dataset to validate on; default: the training data's test split."""
    validate_root: Path | None = None
    """Folder of the data to validate on."""
    validate_count: int | None = None
    """Validate on this many images, spread evenly; default: all."""
    max_skipped: int = 10
    """Steps in a row that may be skipped because loss or gradient is not finite."""
    memory_check: bool = True
    """Refuse a run whose estimated memory is not there."""
    seed: int = 0
    """Of the initial weights, the data order and the crops."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole(name, getattr(self, name)))
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
            raise ValueError(f"milestones are shares between 0 and 1, not {self.milestones}")
        if not 0 <= self.cross_entropy < math.inf:
            raise ValueError(f"cross_entropy must be 0 or more, not {self.cross_entropy}")
        if any(not 0 <= weight < math.inf for weight in self.loss_weights):
            raise ValueError(f"loss weights must be 0 or more, not {self.loss_weights}")
        if self.loss_weights[-1] == 0:
            raise ValueError("the last loss weight is of the prediction itself: it must not be 0")

    def _check_sizes(self) -> None:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro-batch {self.micro_batch}"
            )
        for name in ("crop", "scene_size"):
            if getattr(self, name) is not None:
                sides = tuple(_whole(name, side) for side in getattr(self, name))
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
        if self.mix and self.root is not None:
            raise ValueError("--mix names the folders of its datasets: leave out --root")
        for source in self.sources():
            if source.root is None and source.name != "synthetic":
                fix = f"--root, its folder, or --mix {source.name}:FOLDER:WEIGHT"
                raise ValueError(f"data '{source.name}' needs {fix}")
        wanted = ("validate_data", "validate_root", "validate_count")
        given = [name for name in wanted if getattr(self, name) is not None]
        if given and self.validate_every is None:
            raise ValueError(f"{given[0]} has no use without --validate-every")

    def base_network(self) -> PSMNetConfig:
        """The preset, or what the file `network` describes.

        Raises:
            ValueError, FileNotFoundError: an unknown preset, no such file, or no network in it.
        """
        return preset(self.preset) if self.network is None else read_config(self.network)

    def sources(self) -> tuple[Source, ...]:
        """The datasets to draw from, with their weights."""
        if self.mix:
            return tuple(parse_source(text) for text in self.mix)
        return (Source(self.data, self.root, 1.0),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _whole(name: str, value: Any) -> int:
    """Any kind of whole number, as NumPy's, as Python's own: what is recorded must be plain."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
