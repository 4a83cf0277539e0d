"""One optimiser step: precision, gradient accumulation, and guards against useless steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ea_psmnet.losses import (
    counted_pixels,
    cross_entropies,
    mixture_loss,
    output_losses,
    weighted_sum,
)
from ea_psmnet.machine import has_fast_bfloat16
from ea_psmnet.models.psmnet import PSMNet, StereoOutput
from ea_psmnet.training.config import TrainingConfig, TrainingPrecision
from ea_psmnet.training.data import StereoBatch

_PROBE_ROWS = 64
"""Minimum height of the timed crop; larger heights are multiples of 32, which suit all networks."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step, equal in all processes."""

    loss: float
    """Loss of the whole batch."""
    epe: float
    """EPE of the last prediction over the whole batch, in pixels."""
    gradient_norm: float
    """Gradient norm before clipping."""
    pixels: int
    """Number of counted pixels of the whole batch."""
    outputs: tuple[float, ...] = ()
    """Unweighted losses of the classifiers."""
    skipped: Literal["", "loss", "gradient", "overflow"] = ""
    """What was not finite, if the step was skipped; `overflow` is a gradient that a smaller loss
    scale may make finite."""
    names: tuple[str, ...] = ()
    """Samples of a skipped step: those of the micro-batches whose loss is not finite, or all of
    them, if only the gradient is not."""


class OptimiserStep:
    """Takes steps, whose batch is split into micro-batches and over processes.

    The loss is the mean over all counted pixels of the whole batch, so that the split changes
    nothing but batch statistics.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        network: PSMNet,
        model: nn.Module,
        arithmetic: Arithmetic,
    ) -> None:
        """Create the optimiser.

        Args:
            config: Configuration of the run.
            accelerator: Accelerator of the run.
            network: Network whose parameters are trained.
            model: The network as it is called: compiled, distributed over processes.
            arithmetic: Precision of the forward pass.
        """
        self.config, self.accelerator = config, accelerator
        self.network, self.model, self.arithmetic = network, model, arithmetic
        self.optimizer = torch.optim.Adam(network.parameters(), config.lr, betas=(0.9, 0.999))

    def __call__(
        self,
        batches: Iterator[StereoBatch],
        count: int,
        rate: float,
        stop: Callable[[], bool] = lambda: False,
    ) -> StepResult | None:
        """Take a step.

        Args:
            batches: Micro-batches of this process; if they end early, the step is undone.
            count: Number of micro-batches of the step.
            rate: Learning rate.
            stop: Called between micro-batches; if it returns true, the step is undone.

        Returns:
            The result; None if the step was undone.
        """
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        self.optimizer.zero_grad()
        # The number of counted pixels is known only at the end: assume all of them until then.
        most = torch.tensor(self.config.batch * math.prod(self.config.crop))
        figures, names, counts = [], [], []
        for number in range(count):
            batch = None if stop() else next(batches, None)
            if batch is None:
                self._restore(statistics)
                return None
            names.append(batch.names)
            counts.append(batch.counted(self.config.max_disparity))
            last = number == count - 1
            figures.append(self._backward(batch, most.to(self.accelerator.device), last=last))
        pixels = self._summed(counts)
        own = torch.stack(figures) * self._divide_by(pixels, int(most))
        result = self._result(own, names, pixels)
        if result.skipped:
            self._restore(statistics)  # batch statistics are not finite either
        elif result.pixels > 0:  # without a gradient Adam would still move
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.arithmetic.scaler.step(self.optimizer)
        self.arithmetic.scaler.update()
        return result

    def seconds_a_sample(self) -> float:
        """Estimate the seconds per sample by the second of two passes over parts of blank samples.

        They are two, because torch takes a slower path for one small volume in float32. All
        processes must call it. It leaves network and optimiser unchanged.
        """
        height, width = self.config.crop
        rows = min(height, max(_PROBE_ROWS, height // 128 * 32))
        size, device = (2, rows, width), self.accelerator.device
        image = torch.zeros(2, 3, rows, width, dtype=torch.uint8)
        truth = StereoBatch(image, image, torch.ones(size), torch.ones(size, dtype=torch.bool))
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        pixels, start = torch.tensor(math.prod(size), device=device), 0.0
        for _ in range(2):
            start = time.perf_counter()
            self._backward(truth, pixels, last=False).tolist()  # waits for the GPU
        seconds = time.perf_counter() - start
        self._restore(statistics)
        self.optimizer.zero_grad()
        return seconds / 2 * height / rows

    def state_dict(self) -> dict[str, Any]:
        """State of the optimiser for `load_state_dict`."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            ValueError: The state belongs to another network.
        """
        self.optimizer.load_state_dict(state)
        for parameter, moments in self.optimizer.state.items():  # Adam checks no shapes
            if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("its optimiser state belongs to another network")

    def _summed(self, counts: Sequence[Tensor]) -> int:
        """Number of counted pixels of the whole batch, over all processes."""
        own = torch.stack(list(counts)).sum().to(self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))

    def _divide_by(self, pixels: int, most: int) -> float:
        """Rescale gradients of sums over `most` to sums over `pixels`; returns the factor."""
        factor = most / max(pixels, 1)
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return factor

    def _backward(self, batch: StereoBatch, pixels: Tensor, *, last: bool) -> Tensor:
        """Accumulate the gradients of one micro-batch.

        Args:
            batch: The micro-batch.
            pixels: Divisor of every sum over pixels; `__call__` relies on all results and gradients
                being proportional to 1 / `pixels`.
            last: Whether it is the last micro-batch of the step.

        Returns:
            Its contributions to the loss, the EPE and the loss of each output, (2 + outputs,).
        """
        batch = batch.to(self.accelerator.device)
        limit = self.config.max_disparity
        together = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
        with together:
            with self.arithmetic.autocast():
                outputs = self.model(batch.left.float() / 255, batch.right.float() / 255)
            loss, losses = self._loss(outputs, batch, pixels)
            # Gradients are averaged over processes, whose losses are parts of a sum.
            whole = loss * self.accelerator.num_processes
            self.arithmetic.scaler.scale(whole).backward()
        counted = counted_pixels(batch.disparity, batch.valid, limit)
        error = (outputs.disparity.detach() - batch.disparity).abs()[counted].sum()
        return torch.stack([loss, error / pixels.clamp(min=1), *losses]).detach()

    def _loss(
        self, outputs: StereoOutput, batch: StereoBatch, pixels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss to minimise, and the loss of each prediction, (predictions,).

        `pixels` is the number of counted pixels of the whole batch.
        """
        config, truth = self.config, (batch.disparity, batch.valid)
        disparities = [disparity.float() for disparity in outputs.disparities]
        losses = output_losses(disparities, *truth, config.max_disparity, pixels)
        loss = weighted_sum(losses)
        if config.cross_entropy:
            scores = [score.float() for score in outputs.scores]
            entropies = cross_entropies(
                scores,
                *truth,
                target=config.cross_entropy_target,
                first=self.network.head.first,
                pixels=pixels,
            )
            loss = loss + config.cross_entropy * weighted_sum(entropies)
        if config.likelihood and outputs.choices is not None:
            chosen = outputs.choices[-1].candidates()
            mixture = mixture_loss(*chosen, *truth, config.max_disparity, pixels)
            loss = loss + config.likelihood * mixture
        return loss, losses

    def _result(self, own: Tensor, names: Sequence[tuple[str, ...]], pixels: int) -> StepResult:
        """Result of a step from the figures of this process, (micro-batches, 2 + outputs)."""
        self.arithmetic.scaler.unscale_(self.optimizer)
        # An infinite limit clips nothing; the norm is logged in any case.
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip or math.inf)
        loss, epe, *outputs = self.accelerator.reduce(own.sum(0), "sum").tolist()
        told = (loss, epe, norm.item(), pixels, tuple(outputs))
        if math.isfinite(loss) and norm.isfinite():
            return StepResult(*told)
        what: Literal["loss", "gradient", "overflow"] = "loss"
        if math.isfinite(loss):
            what = "overflow" if self.arithmetic.may_overflow else "gradient"
        return StepResult(*told, what, self._guilty(names, own[:, 0], what))

    def _guilty(
        self, names: Sequence[tuple[str, ...]], losses: Tensor, what: str
    ) -> tuple[str, ...]:
        """Samples of micro-batches with a non-finite loss, or all if every loss is finite."""
        finite = losses.isfinite().tolist()
        guilty = [
            name
            for batch, good in zip(names, finite, strict=True)
            for name in batch
            if what != "loss" or not good
        ]
        return tuple(gather_object(guilty))

    def _restore(self, statistics: Sequence[Tensor]) -> None:
        for buffer, before in zip(self.network.buffers(), statistics, strict=True):
            buffer.copy_(before)


# Precision ----------------------------------------------------------------------------------------


_BF16_BROKEN_AT = (16, 32)
"""Maximum disparities whose volumes are two cells deep at some scale, where the CPU's bfloat16
weight gradient of convolutions reads uninitialised memory (oneDNN in torch 2.15, both layouts)."""

_DTYPES: dict[TrainingPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Arithmetic:
    """Autocast and loss scaling for one device.

    Parameters, their gradients and the optimiser stay in float32.
    """

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype = dtype
        self.device = device
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        reduced = self.dtype != torch.float32
        return torch.autocast(self.device, self.dtype if reduced else None, enabled=reduced)

    @property
    def may_overflow(self) -> bool:
        """Whether a smaller loss scale may make an infinite gradient finite."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1


def choose_arithmetic(config: TrainingConfig, device: str) -> Arithmetic:
    """Choose the precision of a run on a device type, `cpu` or `cuda`.

    Raises:
        ValueError: The device computes this precision wrongly at this maximum disparity.
    """
    broken = device == "cpu" and config.max_disparity in _BF16_BROKEN_AT
    if broken and config.precision in ("bf16", "fp16"):
        raise ValueError(
            f"{config.precision} on a CPU cannot train max disparity {config.max_disparity}: take "
            "48 or more, or --precision fp32"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bfloat16(device) and not broken else "fp32"
    return Arithmetic(_DTYPES[precision], device)


# Guards -------------------------------------------------------------------------------------------


class FiniteGuard:
    """Counts skipped steps and ends the run after too many in a row."""

    LIMIT = 10
    """Consecutive steps with a non-finite loss or gradient after which the run ends."""

    def __init__(self) -> None:
        self.skipped = 0
        """Number of skipped steps of the whole run."""
        self.in_a_row = 0

    def passed(self) -> None:
        """Note that a step was finite."""
        self.in_a_row = 0

    def skip(self, step: int, cause: str, names: Sequence[str]) -> str:
        """Count a skipped step and return a warning for the user.

        Args:
            step: Number of the step.
            cause: The part that was not finite.
            names: Samples from which it was computed.

        Raises:
            FloatingPointError: Too many consecutive steps were skipped.
        """
        self.skipped += 1
        self.in_a_row += 1
        line = f"step {step} skipped: the {cause} is not finite; samples: {', '.join(names)}"
        if self.in_a_row < self.LIMIT:
            return line
        raise FloatingPointError(
            f"{self.in_a_row} steps in a row were not finite; the last: {line}. The weights of the "
            "last good step are kept: continue from the run's model.safetensors by --init in "
            "another --out, with a lower --lr, with --clip, or with --precision fp32"
        )

    def state_dict(self) -> dict[str, int]:
        """State for `load_state_dict`."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a saved state."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


class TruthGuard:
    """Ends a run whose first steps have no ground truth.

    Single batches without ground truth do no harm; a dataset without any would train on zeros.
    """

    LIMIT = 10
    """Number of steps after which the run ends."""

    def __init__(self, max_disparity: int) -> None:
        self.max_disparity = max_disparity
        self._steps = 0
        self._found = False

    def saw(self, pixels: int) -> None:
        """Note the number of counted pixels of a step.

        Raises:
            ValueError: None of the first `LIMIT` steps had any.
        """
        self._found = self._found or pixels > 0
        self._steps += 1
        if not self._found and self._steps == self.LIMIT:
            raise ValueError(
                f"{self.LIMIT} steps without a single pixel of known disparity below "
                f"{self.max_disparity}: check the dataset (python -m ea_psmnet data check) or "
                "raise --max-disparity"
            )

    def state_dict(self) -> dict[str, int]:
        """State for `load_state_dict`."""
        return {"steps": self._steps, "found": int(self._found)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore a saved state."""
        self._steps, self._found = int(state["steps"]), bool(state["found"])
