"""One network at one workload under a memory budget: `python -m ea_psmnet.experiments.trial`.

The program reads a `Trial` as JSON from standard input and writes an `Outcome` as JSON to the file
that is named with it. It is a process of its own, so that a network that dies takes nothing along.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets.builder import build_dataset
from ea_psmnet.attention import VolumeAttention
from ea_psmnet.console import exit_code, is_out_of_memory
from ea_psmnet.evaluation.evaluation import evaluate
from ea_psmnet.experiments.measure import held_bytes, limited, peak_bytes, reset_peak
from ea_psmnet.experiments.networks import at_sites, parse_variant
from ea_psmnet.experiments.resources import parse_volume
from ea_psmnet.files import write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.losses import stereo_loss
from ea_psmnet.machine import Device, Precision, choose_device, has_fast_bfloat16, keep_freed_memory
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weight_files import find_weights
from ea_psmnet.models.weights import load_model, load_state
from ea_psmnet.records import parse_record
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import check_range

__all__ = [
    "DEFAULT_SIZES",
    "DEFAULT_VARIANTS",
    "Allocator",
    "End",
    "Load",
    "Measured",
    "ModuleTrace",
    "Network",
    "Outcome",
    "Trial",
    "Work",
    "Workload",
    "attention_site",
    "is_bfloat16",
    "named_networks",
    "on_dataset",
    "plan",
    "prediction",
    "run_trial",
    "training_step",
]

Work = Literal["inference", "training", "dataset"]
"""Predict a random batch, take training steps on one, or predict a dataset and measure errors."""

Allocator = Literal["kept", "default"]
"""Of the CPU: told to keep what is freed, as the commands do, or glibc as it comes."""

End = Literal["fits", "out of memory", "failed"]
"""How a trial ended."""


@dataclass(frozen=True)
class Trial:
    """What to run."""

    label: str
    network: dict[str, Any]
    """A `PSMNetConfig`, as `to_dict` gives it."""
    checkpoint: str | None
    """Its weights; None for fresh ones."""
    work: Work
    shape: tuple[int, int, int] | None
    """Batch, height and width; None on a dataset, which has its own."""
    budget: int
    """Bytes it may take above the loaded network."""
    data: str = "auto"
    root: str | None = None
    """The dataset, where that is the work."""
    device: Device = "auto"
    precision: Precision = "auto"
    allocator: Allocator = "kept"
    repeats: int = 3
    """Runs that are timed; on a dataset every pair counts once."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    end: End
    shape: tuple[int, int, int] | None = None
    """Batch, height and width of the largest input that the network took."""
    seconds: float | None = None
    """Time of a batch or step, or of a pair of the dataset."""
    peak: int | None = None
    """Highest memory above the loaded network, bytes; where it ran out, until then."""
    figures: dict[str, float] | None = None
    """EPE and so on, of trained weights on a dataset."""
    requested: int | None = None
    """Bytes of the allocation that failed, where the allocator says."""
    module: str | None = None
    """The module at work when memory ran out; None outside of the network."""
    error: str | None = None
    """What else ended it."""


def run_trial(trial: Trial) -> Outcome:
    """Run a workload within its budget; running out of memory is an outcome, not an error."""
    workload = _workload(trial)
    before = held_bytes(workload.device)
    reset_peak(workload.device)
    seconds = figures = requested = None
    end: End = "fits"
    try:
        with limited(trial.budget, workload.device):
            measured = workload.run()
        seconds, figures = measured.seconds, measured.figures
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        end, requested = "out of memory", _requested_bytes(str(error))
    return Outcome(
        end=end,
        shape=workload.trace.largest,
        seconds=seconds,
        peak=max(0, peak_bytes(workload.device) - before),  # what was free within may suffice
        figures=_finite(figures) if trial.checkpoint and figures else None,
        requested=requested,
        module=workload.trace.current if end == "out of memory" else None,
    )


def _workload(trial: Trial) -> Workload:
    network = _network(trial)
    if trial.work == "dataset" or trial.shape is None:
        dataset = build_dataset(trial.data, Path(trial.root or ""), split="test")
        return on_dataset(network, dataset, trial.device, trial.precision, trial.label)
    make = prediction if trial.work == "inference" else training_step
    return make(network, trial.shape, trial.device, trial.precision, trial.repeats)


def _network(trial: Trial) -> PSMNet:
    config = PSMNetConfig.from_dict(trial.network)
    if trial.checkpoint is None:
        torch.manual_seed(0)
        return build_model(config)
    return load_model(trial.checkpoint, max_disparity=config.max_disparity)


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """JSON has no NaN; nothing was counted, or a prediction was not finite."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _requested_bytes(message: str) -> int | None:
    """The size of the failed allocation, from the message of torch's CPU or CUDA allocator.

    The latter rounds: to 2 MiB when it allocates, and to hundredths of a unit when it tells.
    """
    if cpu := re.search(r"tried to allocate (\d+) bytes", message):
        return int(cpu[1])
    if cuda := re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message):
        return int(float(cuda[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB").index(cuda[2]))
    return None


@dataclass(frozen=True)
class _Request:
    trial: Trial
    outcome: str
    """File to write the outcome to."""


def _main() -> None:
    request = parse_record(sys.stdin.buffer.read(), _Request, "standard input")
    trial = request.trial
    if trial.allocator == "kept":
        keep_freed_memory()
    try:
        outcome = run_trial(trial)
    except (ValueError, OSError) as error:
        outcome = Outcome("failed", error=str(error))
    write_json(request.outcome, asdict(outcome))


if __name__ == "__main__":
    sys.exit(exit_code(_main))


DEFAULT_VARIANTS = ("baseline", "efficient", "non-local")
"""The paper's three."""

DEFAULT_SIZES = ("256x512",)
"""PSMNet's training crop; Scene Flow's images, padded to 544x960, take four times as long."""


@dataclass(frozen=True)
class Network:
    """A column of the paper's Table 5."""

    label: str
    config: PSMNetConfig
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Load:
    """What every network is given to do."""

    sizes: Sequence[str] = ()
    """Of random images; none means the defaults, or with a dataset none."""
    batches: Sequence[int] = (1,)
    works: Sequence[Work] = ("inference", "training")
    root: Path | None = None
    """A dataset to predict."""
    data: str = "auto"


def named_networks(
    variants: Sequence[str],
    presets: Sequence[str],
    checkpoints: Sequence[Path],
    *,
    sites: Sequence[str],
    width: float,
    max_disparity: int,
) -> list[Network]:
    """Networks in the order checkpoints, presets, variants; `DEFAULT_VARIANTS` where none is named.

    Raises:
        ValueError, FileNotFoundError: an unknown name, or a file that is no checkpoint.
    """
    if not (variants or presets or checkpoints):
        variants = DEFAULT_VARIANTS
    checkpoints = [find_weights(path) for path in checkpoints]
    stems = [path.stem for path in checkpoints]
    trained = [
        Network(
            _label(path, stems), replace(load_state(path)[0], max_disparity=max_disparity), path
        )
        for path in checkpoints
    ]
    fresh = [
        Network(name, replace(preset(name), max_disparity=max_disparity)) for name in presets
    ] + [
        Network(text, parse_variant(text, width=width, max_disparity=max_disparity))
        for text in at_sites(variants, sites)
    ]
    return trained + fresh


def _label(path: Path, stems: Sequence[str]) -> str:
    """The file's name; where several have it, with the folder's."""
    return path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"


def plan(networks: Sequence[Network], load: Load, **options: Any) -> list[Trial]:
    """A trial for every network and workload.

    Args:
        networks: what to try.
        load: what with.
        options: of `Trial`: budget, device, precision, allocator, repeats.

    Raises:
        ValueError, FileNotFoundError: an impossible size or batch, or no dataset.
    """
    check_range("repeats", options.get("repeats", 1), 1, 1000)
    shapes = _shapes(load, max(network.config.max_disparity for network in networks))
    works: list[tuple[Work, tuple[int, int, int] | None]] = list(product(load.works, shapes))
    if load.root is not None:
        build_dataset(load.data, load.root, split="test")
        works.append(("dataset", None))
    return [
        Trial(
            label=network.label,
            network=network.config.to_dict(),
            checkpoint=str(network.checkpoint) if network.checkpoint else None,
            work=work,
            shape=shape,
            data=load.data,
            root=str(load.root) if load.root else None,
            **options,
        )
        for work, shape in works
        for network in networks
    ]


def _shapes(load: Load, max_disparity: int) -> list[tuple[int, int, int]]:
    """Batch, height and width, in order of pixels."""
    sizes = load.sizes or (() if load.root else DEFAULT_SIZES)
    shapes = [(batch, *_size(text, max_disparity)) for text in sizes for batch in load.batches]
    for batch in load.batches:
        check_range("a batch", batch, 1, 2**16)
    return sorted(set(shapes), key=lambda shape: (shape[0], shape[1] * shape[2]))


def _size(text: str, max_disparity: int) -> tuple[int, int]:
    sides = parse_volume(text)
    if len(sides) != 2 or any(side % 16 for side in sides):
        raise ValueError(f"'{text}' is no size: write height and width, multiples of 16: 544x960")
    for side in sides:
        check_range(f"a side of '{text}'", side, 16, 2**14)
    if sides[1] < max_disparity:
        raise ValueError(
            f"images of {text} are narrower than the {max_disparity} disparities: lower "
            "--max-disparity or take larger --sizes"
        )
    return sides[0], sides[1]


_WHOLE = 2**62
"""Memory enough for any plan: the budget is to be hit, not avoided by tiles."""


@dataclass(frozen=True)
class Measured:
    """One workload that went to its end."""

    seconds: float
    """Of one prediction or step of the batch, or a pair of the dataset."""
    figures: dict[str, float] | None = None
    """Errors, on a dataset."""


@dataclass(frozen=True)
class Workload:
    """Something to run, on a network that is loaded."""

    device: torch.device
    trace: ModuleTrace
    run: Callable[[], Measured]


def is_bfloat16(device: Device, precision: Precision) -> bool:
    """Whether convolutions are computed in bfloat16, as the matcher chooses."""
    return precision != "exact" and has_fast_bfloat16(choose_device(device))


def prediction(
    network: PSMNet, shape: tuple[int, int, int], device: Device, precision: Precision, repeats: int
) -> Workload:
    """Predictions of a random batch, prepared as the matcher does; the first is not timed.

    Args:
        network: in float32 on the CPU.
        shape: batch, height and width.
        device: where to compute.
        precision: of the convolutions.
        repeats: how many are timed; their median counts.
    """
    matcher = StereoMatcher(network, device=device, precision=precision, memory=_WHOLE)
    images = _random_images(shape, matcher.device)
    autocast = _autocast(matcher.device, is_bfloat16(device, precision))

    def predict() -> None:
        with torch.inference_mode(), autocast:
            matcher.model(*images)

    trace = ModuleTrace(matcher.model)
    return Workload(matcher.device, trace, lambda: _timed(predict, repeats, matcher.device))


def training_step(
    network: PSMNet, shape: tuple[int, int, int], device: Device, precision: Precision, repeats: int
) -> Workload:
    """Steps of Adam on a random batch, whose truth is a plane; arguments as of `prediction`.

    The first step, which makes the optimiser's moments, is not timed but counts for the peak.
    """
    chosen = torch.device(choose_device(device))
    to_channels_last(network)
    network.train().to(chosen)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    images = _random_images(shape, chosen)
    limit = network.config.max_disparity
    truth = torch.full(shape, limit / 2, device=chosen)
    valid = torch.ones(shape, dtype=torch.bool, device=chosen)
    autocast = _autocast(chosen, is_bfloat16(device, precision))
    trace = ModuleTrace(network)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            outputs = network(*images).disparities
        stereo_loss([output.float() for output in outputs], truth, valid, limit).backward()
        trace.clear()
        optimizer.step()

    return Workload(chosen, trace, lambda: _timed(step, repeats, chosen))


def on_dataset(
    network: PSMNet,
    dataset: Sequence[StereoSample],
    device: Device,
    precision: Precision,
    label: str,
) -> Workload:
    """Prediction of every pair of a dataset, one by one, with errors."""
    matcher = StereoMatcher(network, device=device, precision=precision, memory=_WHOLE)

    def run() -> Measured:
        evaluation = evaluate(matcher, dataset, label)
        seconds = [image.seconds for image in evaluation.images]
        return Measured(sum(seconds) / len(seconds), evaluation.total.figures())

    return Workload(matcher.device, ModuleTrace(matcher.model), run)


def _random_images(shape: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Two views (B, 3, H, W) of noise: memory and time do not depend on what they show."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(batch, 3, height, width, generator=generator).to(device) for _ in range(2)]


def _autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def _timed(work: Callable[[], None], repeats: int, device: torch.device) -> Measured:
    """The median time of some runs after one that is not timed."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Measured(median(seconds[1:]))


_SITE = re.compile(r"aggregation\.(?:attention|hourglasses\.(\d)\.attention\.(\w+))")


class ModuleTrace:
    """Follows a network through hooks on its modules.

    In the forward, the module at work is the last one entered and not left. In the backward it is
    the one whose output's gradient came in last.
    """

    def __init__(self, network: nn.Module) -> None:
        self.largest: tuple[int, int, int] | None = None
        """Batch, height and width of the largest input so far."""
        self._entered: list[str] = []
        self._backward: str | None = None
        network.register_forward_pre_hook(self._see)
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name or "network"))
            module.register_forward_hook(partial(self._leave, name or "network"))

    @property
    def current(self) -> str | None:
        """The module's name, `network` for the outermost; None where none is at work."""
        return self._entered[-1] if self._entered else self._backward

    def clear(self) -> None:
        """Say that no module is at work: a backward has no end that a hook sees."""
        self._entered.clear()
        self._backward = None

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batch, _channels, height, width = inputs[0].shape
        seen = (batch, height, width)
        if self.largest is None or math.prod(seen) > math.prod(self.largest):
            self.largest = seen

    def _enter(self, name: str, *_: Any) -> None:
        self._entered.append(name)

    def _leave(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        self._entered.pop()
        leaf = isinstance(module, VolumeAttention) or not any(module.children())
        if leaf and isinstance(output, Tensor) and output.grad_fn is not None:
            output.grad_fn.register_prehook(partial(self._begin_backward, name))

    def _begin_backward(self, name: str, _: Any) -> None:
        self._backward = name


def attention_site(module: str) -> str | None:
    """The place of attention, of `SITES`, that a module of `PSMNet` is or lies in.

    Example:
        >>> attention_site("aggregation.hourglasses.0.attention.encoder.queries")
        'hourglass1.encoder'
    """
    match = _SITE.match(module)
    if match is None:
        return None
    index, place = match.groups()
    return "volume" if index is None else f"hourglass{int(index) + 1}.{place}"
