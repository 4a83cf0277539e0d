"""One optimiser step: all micro-batches of all processes, or nothing."""

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

from ea_psmnet.losses import counted_pixels, cross_entropies, output_losses, weighted_sum
from ea_psmnet.models.psmnet import PSMNet, StereoOutput
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import StereoBatch
from ea_psmnet.training.precision import Arithmetic

__all__ = ["OptimiserStep", "StepResult"]

_PROBE_ROWS = 64
"""The least height of what is timed; more is in steps of 32, which suit every network."""


@dataclass(frozen=True)
class StepResult:
    """What came of a step, the same in all processes."""

    loss: float
    """Of the whole batch."""
    epe: float
    """Of the last prediction over the whole batch, in pixels."""
    gradient_norm: float
    """Before clipping."""
    pixels: int
    """Counted ones of the whole batch."""
    outputs: tuple[float, ...] = ()
    """Losses of the classifiers, not weighted."""
    skipped: Literal["", "loss", "gradient", "overflow"] = ""
    """What was not finite, if the step was skipped for it; `overflow` is a gradient that a smaller
    loss scale may mend."""
    names: tuple[str, ...] = ()
    """Samples that a step was skipped for: those of the micro-batches whose loss is not finite, or
    all, if only a gradient is not."""


class OptimiserStep:
    """Takes steps: gradients of a batch cut into micro-batches and shared among processes.

    The loss is the mean over all counted pixels of the whole batch, so that how it is cut and
    shared changes nothing but batch statistics.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        network: PSMNet,
        model: nn.Module,
        arithmetic: Arithmetic,
    ) -> None:
        """Prepare an optimiser.

        Args:
            config: the run.
            accelerator: knows device and processes.
            network: whose parameters are trained.
            model: the same as it is called: compiled, spread over processes.
            arithmetic: of the forward pass.
        """
        self.config = config
        self.accelerator = accelerator
        self.network = network
        self.model = model
        self.arithmetic = arithmetic
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
            batches: gives this process's micro-batches, one at a time; ends early where the step
                is to be undone.
            count: how many they are.
            rate: learning rate.
            stop: asked between micro-batches; where it says true the step is undone.

        Returns:
            What came of it; None if it was undone.
        """
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        self.optimizer.zero_grad()
        # What counts is known when all has been seen; until then as if every pixel did.
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
            self._restore(statistics)  # what is not finite has reached the batch statistics, too
        elif result.pixels > 0:  # without a gradient Adam would still move
            self._update(rate)
        self.arithmetic.scaler.update()
        return result

    def seconds_a_sample(self) -> float:
        """How long a sample takes, about: the second of two passes over the top of an empty one.

        All processes must ask; nothing is changed by it.
        """
        height, width = self.config.crop
        rows = min(height, max(_PROBE_ROWS, height // 128 * 32))
        size, device = (1, rows, width), self.accelerator.device
        image = torch.zeros(1, 3, rows, width, dtype=torch.uint8)
        truth = StereoBatch(image, image, torch.ones(size), torch.ones(size, dtype=torch.bool))
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        pixels, start = torch.tensor(rows * width, device=device), 0.0
        for _ in range(2):
            start = time.perf_counter()
            self._backward(truth, pixels, last=False).tolist()  # which waits for a card, too
        seconds = time.perf_counter() - start
        self._restore(statistics)
        self.optimizer.zero_grad()
        return seconds * height / rows

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: the optimiser's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is another network's.
        """
        self.optimizer.load_state_dict(state)
        for parameter, moments in self.optimizer.state.items():  # which Adam does not look at
            if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("its optimiser's state is another network's")

    def _summed(self, counts: Sequence[Tensor]) -> int:
        """Counted pixels of the whole batch in all processes."""
        own = torch.stack(list(counts)).sum().to(self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))

    def _divide_by(self, pixels: int, most: int) -> float:
        """Make gradients that were divided by `most` those divided by `pixels`.

        Returns:
            The factor, which the loss wants, too.
        """
        factor = most / max(pixels, 1)
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return factor

    def _backward(self, batch: StereoBatch, pixels: Tensor, *, last: bool) -> Tensor:
        """Add one micro-batch's gradients.

        Args:
            batch: it.
            pixels: what every sum over pixels is divided by; `__call__` relies on all that is
                returned and every gradient being in proportion to 1 / `pixels`.
            last: whether it is the last of the step.

        Returns:
            (2 + outputs,): its parts of the loss, of the EPE and of each output's loss.
        """
        batch = batch.to(self.accelerator.device)
        limit = self.config.max_disparity
        together = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
        with together:
            with self.arithmetic.autocast():
                outputs = self.model(batch.left.float() / 255, batch.right.float() / 255)
            loss, losses = self._loss(outputs, batch, pixels)
            # Processes' gradients are averaged, and their losses are parts of a sum.
            whole = loss * self.accelerator.num_processes
            self.arithmetic.scaler.scale(whole).backward()
        counted = counted_pixels(batch.disparity, batch.valid, limit)
        error = (outputs.disparity.detach() - batch.disparity).abs()[counted].sum()
        return torch.stack([loss, error / pixels.clamp(min=1), *losses]).detach()

    def _loss(
        self, outputs: StereoOutput, batch: StereoBatch, pixels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What to train with, and the loss of each prediction (predictions,).

        Args:
            outputs: the network's.
            batch: the truth.
            pixels: counted ones of the whole batch.
        """
        config, truth = self.config, (batch.disparity, batch.valid)
        disparities = [disparity.float() for disparity in outputs.disparities]
        losses = output_losses(disparities, *truth, config.max_disparity, pixels)
        loss = weighted_sum(losses, config.loss_weights)
        if config.cross_entropy:
            scores = [score.float() for score in outputs.scores]
            entropies = cross_entropies(
                scores,
                *truth,
                target=config.cross_entropy_target,
                first=self.network.head.first,
                pixels=pixels,
            )
            loss = loss + config.cross_entropy * weighted_sum(entropies, config.loss_weights)
        return loss, losses

    def _result(self, own: Tensor, names: Sequence[tuple[str, ...]], pixels: int) -> StepResult:
        """What came of a step, from this process's figures, (micro-batches, 2 + outputs)."""
        self.arithmetic.scaler.unscale_(self.optimizer)
        # An infinite norm clips nothing; without a limit the norm is still of interest.
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
        """Samples of the micro-batches whose loss is not finite, or of all if every loss is."""
        finite = losses.isfinite().tolist()
        guilty = [
            name
            for batch, good in zip(names, finite, strict=True)
            for name in batch
            if what != "loss" or not good
        ]
        return tuple(gather_object(guilty))

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.arithmetic.scaler.step(self.optimizer)

    def _restore(self, statistics: Sequence[Tensor]) -> None:
        for buffer, before in zip(self.network.buffers(), statistics, strict=True):
            buffer.copy_(before)
