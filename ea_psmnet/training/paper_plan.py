"""What the paper's training costs on how many GPUs, and what limits scaling.

`python -m ea_psmnet.training.paper_plan --out docs/paper-plan.md` writes it for a rate yet to be
measured; `--samples-per-second X --gpu NAME` for the rate X of one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ea_psmnet.files import write_text
from ea_psmnet.models.config import preset
from ea_psmnet.models.normalisation import batch_norms
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.tables import markdown_table
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import SCENE_FLOW_SAMPLES

__all__ = ["Cluster", "Measured", "Plan", "paper_plan", "plans"]

_PAPER = TrainingConfig(out=Path("run"), data="synthetic")  # whose defaults are the paper's
_SAMPLE_BYTES = 2 * 540 * 960 * 3 + 256 * 960 * 4
"""A decoded pair, and the rows of its disparity that a crop reads."""
_STATISTICS = 4 * 2 * 64
"""Bytes: mean and variance of 64 channels, a middling layer."""
_UNNOTICED = 0.1
"""Share of a step that communication may take."""


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes; the figures are assumptions to be replaced by those of the place."""

    per_node: int = 8
    """GPUs of a node."""
    inside: float = 450.0
    """GB/s between a node's GPUs, one direction of each: NVLink 4 by its specification."""
    between: float = 50.0
    """GB/s between nodes, one direction: 400 Gbit/s."""
    latency: float = 5.0
    """Microseconds from GPU to GPU."""

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds to add up `size` bytes over GPUs and give all of them the sum.

        Two trees (Sanders, Speck and Träff, 2009), as NCCL builds them: latency grows with the
        logarithm, and each GPU moves almost twice the bytes, over the slowest link on the way.
        """
        bandwidth = 1e9 * (self.inside if gpus <= self.per_node else self.between)
        hops = 2 * math.ceil(math.log2(gpus))
        return 1e-6 * self.latency * hops + 2 * (gpus - 1) / gpus * size / bandwidth


_CLUSTER = Cluster()


@dataclass(frozen=True)
class Plan:
    """The paper's epochs on some GPUs.

    Communication counts in full; a good part of it hides behind the backward pass.
    """

    gpus: int
    """That work."""
    idle: int
    """That the batch leaves without a sample."""
    batch: int
    rate: float
    """Samples a second of one GPU by itself."""
    communication: float
    """Seconds a step."""

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return _PAPER.epochs * SCENE_FLOW_SAMPLES // self.batch

    @property
    def alone(self) -> float:
        """Seconds of a step without communication."""
        return self.batch / self.gpus / self.rate

    @property
    def hours(self) -> float:
        """Of the whole training."""
        return self.steps * (self.alone + self.communication) / 3600

    @property
    def samples_per_second(self) -> float:
        """That the loaders must deliver, all together."""
        return self.batch / (self.alone + self.communication)


def plans(rate: float, gpus: Sequence[int], size: int, cluster: Cluster) -> list[Plan]:
    """Plans for numbers of GPUs; more GPUs than samples in a batch get two.

    Args:
        rate: samples a second of one GPU.
        gpus: how many there are.
        size: bytes of all gradients.
        cluster: how they are connected.
    """
    found = []
    for there in gpus:
        for used, batch in _shares(there):
            seconds = cluster.all_reduce(size, used)
            found.append(Plan(used, there - used, batch, rate, seconds))
    return found


def _shares(gpus: int) -> Iterator[tuple[int, int]]:
    """GPUs to use and batch: the paper's batch, and if there are more, a sample for each GPU."""
    batch = _PAPER.batch
    yield max(n for n in range(1, min(gpus, batch) + 1) if batch % n == 0), batch
    if gpus > batch:
        yield gpus, gpus


# The page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """How fast one GPU trains by itself."""

    rate: float
    """Samples a second."""
    gpu: str
    """Which GPU, and how: precision and micro-batch."""


def paper_plan(
    measured: Measured | None, gpus: Sequence[int], cluster: Cluster, network: str = "ea-psmnet"
) -> str:
    """The plan as Markdown.

    Args:
        measured: the rate to plan with; None plans with 1 sample a second, and says so.
        gpus: numbers to plan for.
        cluster: how they are connected.
        network: the preset.
    """
    model = build_model(preset(network))
    size = sum(4 * parameter.numel() for parameter in model.parameters())  # float32
    layers = len(list(batch_norms(model)))
    found = plans(measured.rate if measured else 1.0, gpus, size, cluster)
    parts = (
        f"# Paper plan: {_PAPER.epochs} epochs of Scene Flow",
        _task(network),
        _origin(measured),
        "## Cost",
        markdown_table([_cost(plan) for plan in found], {"hours": 1, "GPU hours": 1}),
        _COST,
        "## What limits scaling",
        _limits(size, layers, cluster),
        markdown_table([_limit(plan, layers, cluster) for plan in found], _DIGITS),
        _SCALING,
    )
    return "\n\n".join(parts) + "\n"


def _task(network: str) -> str:
    samples, (height, width) = _PAPER.epochs * SCENE_FLOW_SAMPLES, _PAPER.crop
    return (
        f"`{network}`, batch {_PAPER.batch}, crops of {height} x {width}, {_PAPER.max_disparity} "
        f"disparities. {_PAPER.epochs} epochs of {SCENE_FLOW_SAMPLES:,} pairs are {samples:,} "
        f"samples: at r samples a second a GPU needs {samples / 3600:.1f} / r hours."
    )


def _origin(measured: Measured | None) -> str:
    if measured is None:
        return (
            "**No GPU's rate has been measured yet.** The tables are for 1 sample a second a GPU, "
            "which is no measurement: divide hours and multiply what loaders deliver, by the rate, "
            "or write them anew: `python -m ea_psmnet.training.paper_plan --out docs/paper-plan.md "
            "--samples-per-second X --gpu 'what was measured'`."
        )
    return f"Measured: {measured.rate:g} samples a second of {measured.gpu}. The rest is computed."


def _cost(plan: Plan) -> dict[str, object]:
    return {
        "GPUs": f"{plan.gpus}" + (f" of {plan.gpus + plan.idle}" if plan.idle else ""),
        "batch": plan.batch,
        "samples a GPU": plan.batch // plan.gpus,
        "steps": f"{plan.steps:,}",
        "hours": plan.hours,
        "GPU hours": plan.hours * plan.gpus,
        "of ideal speed": f"{plan.alone / (plan.alone + plan.communication):.1%}",
    }


_COST = """\
Hours are of training steps; validation and checkpoints come on top. Communication counts in full,
although much of it hides behind the backward pass, and the statistics of BatchNorm are each GPU's
own. GPUs that the batch leaves idle are not counted, but are paid for where they are reserved.

A batch of 24 has work for 24 GPUs at most, one sample each. With 64 there are two ways:

- Keep the recipe and use 24 of them; the other 40 serve better as another run, as another network.
- Take a larger batch, at least a sample a GPU. That is another recipe: fewer steps of less noisy
  gradients. The rate is scaled to go with it, by batch / 24 (Goyal et al., 2017) or, as is usual
  for Adam, by its root: 0.0053 or 0.0033 at batch 64, begun low with `--schedule one-cycle`. What
  it does to the error has to be measured; the paper's figures do not cover it."""


def _limits(size: int, layers: int, cluster: Cluster) -> str:
    return (
        f"Assumed, not measured: nodes of {cluster.per_node} GPUs, {cluster.inside:g} GB/s between "
        f"those of a node, {cluster.between:g} GB/s between nodes, {cluster.latency:g} "
        f"microseconds a hop. Each step adds up {size / 1e6:.1f} MB of float32 gradients; with "
        f"`--normalisation sync` it also exchanges the statistics of {layers} layers, forward and "
        "backward, of which each costs its latency. Loaders must deliver what the GPUs take: at "
        f"most {_SAMPLE_BYTES / 1e6:.1f} MB a sample, two frames as if not compressed and the "
        "crop's rows of the disparity."
    )


_RATE_OF_A_TENTH = "a tenth of a step from, samples/s a GPU"
_DIGITS = {
    _RATE_OF_A_TENTH: 0,
    "synchronised, from": 0,
    "loaders, samples/s": 1,
    "loaders, MB/s": 0,
}


def _limit(plan: Plan, layers: int, cluster: Cluster) -> dict[str, object]:
    statistics = 2 * layers * cluster.all_reduce(_STATISTICS, plan.gpus)
    both = plan.communication + statistics
    share = plan.batch / plan.gpus * _UNNOTICED / (1 - _UNNOTICED)  # samples in that time
    return {
        "GPUs": plan.gpus,
        "batch": plan.batch,
        "gradients, ms": 1000 * plan.communication,
        "synchronised statistics, ms": 1000 * statistics,
        _RATE_OF_A_TENTH: share / plan.communication if both else None,
        "synchronised, from": share / both if both else None,
        "loaders, samples/s": plan.samples_per_second,
        "loaders, MB/s": plan.samples_per_second * _SAMPLE_BYTES / 1e6,
    }


_SCALING = """\
In the order in which they are met:

1. **The batch**: 24 samples are shared by no more than 24 GPUs, and only by a divisor of 24 evenly.
2. **Small micro-batches**: the plan takes a GPU's rate to be the same for 24 samples and for one.
   It will be lower for one, as small maps no longer fill the GPU; measure it at the micro-batch of
   the plan. BatchNorm, too, sees one sample's statistics unless they are synchronised.
3. **Loading**: it grows with the GPUs, the cores of a node do not. `python -m
   ea_psmnet.reports.loader_benchmark OUT` measures what a core decodes, and `waiting` in a run's
   `metrics.jsonl` the share of the time that the GPU waits.
4. **Communication**: last with such links, as the network is small. The columns say from which
   rate of a GPU on it takes a tenth of a step."""


def main(
    *,
    out: Path,
    samples_per_second: float | None = None,
    gpu: str = "",
    gpus: tuple[int, ...] = (1, 8, 64),
    cluster: Cluster = _CLUSTER,
) -> None:
    """Write the plan of the paper's training.

    Args:
        out: Markdown file to write.
        samples_per_second: Measured rate of one GPU.
        gpu: What was measured, as "an H200, bf16, micro-batch 24".
        gpus: Numbers of GPUs to plan for.
        cluster: How they are connected.
    """
    if min(gpus) < 1:
        raise SystemExit("error: --gpus must be at least 1")
    measured = None
    if samples_per_second is not None:
        if not (samples_per_second > 0 and gpu):
            raise SystemExit("error: --samples-per-second must be positive and --gpu say of what")
        measured = Measured(samples_per_second, gpu)
    write_text(out, paper_plan(measured, gpus, cluster))


if __name__ == "__main__":
    tyro.cli(main)
