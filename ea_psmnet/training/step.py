"""One optimiser step: all micro-batches of all processes, or nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ea_psmnet.losses import CROSS_ENTROPIES, counted_pixels, output_losses, weighted_sum
from ea_psmnet.models.psmnet import PSMNet, StereoOutput
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import StereoBatch
from ea_psmnet.training.precision import Arithmetic

__all__ = ["OptimiserStep", "StepResult"]


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
        self, batches: Sequence[StereoBatch], rate: float, stop: Callable[[], bool] = lambda: False
    ) -> StepResult | None:
        """Take a step.

        Args:
            batches: this process's micro-batches.
            rate: learning rate.
            stop: asked between micro-batches; where it says true the step is undone.

        Returns:
            What came of it; None if it was undone.
        """
        statistics = [buffer.clone() for buffer in self.network.buffers()]
        pixels = self._pixels(batches)
        self.optimizer.zero_grad()
        figures = []
        for number, batch in enumerate(batches):
            if stop():
                self._restore(statistics)
                return None
            figures.append(self._backward(batch, pixels, last=number == len(batches) - 1))
        result = self._result(figures, batches, int(pixels))
        if result.skipped:
            self._restore(statistics)  # what is not finite has reached the batch statistics, too
        elif result.pixels > 0:  # without a gradient Adam would still move
            self._update(rate)
        self.arithmetic.scaler.update()
        return result

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

    def _pixels(self, batches: Sequence[StereoBatch]) -> Tensor:
        """Counted pixels of the whole batch in all processes."""
        counts = [batch.counted(self.config.max_disparity) for batch in batches]
        return self.accelerator.reduce(torch.stack(counts).sum().to(self.accelerator.device), "sum")

    def _backward(self, batch: StereoBatch, pixels: Tensor, *, last: bool) -> Tensor:
        """Add one micro-batch's gradients.

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
            entropies = CROSS_ENTROPIES[config.cross_entropy_target](
                scores, *truth, first=self.network.head.first, pixels=pixels
            )
            loss = loss + config.cross_entropy * weighted_sum(entropies, config.loss_weights)
        return loss, losses

    def _result(
        self, figures: Sequence[Tensor], batches: Sequence[StereoBatch], pixels: int
    ) -> StepResult:
        self.arithmetic.scaler.unscale_(self.optimizer)
        # An infinite norm clips nothing; without a limit the norm is still of interest.
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip or math.inf)
        own = torch.stack(list(figures))  # (batches, 2 + outputs)
        loss, epe, *outputs = self.accelerator.reduce(own.sum(0), "sum").tolist()
        told = (loss, epe, norm.item(), pixels, tuple(outputs))
        if math.isfinite(loss) and norm.isfinite():
            return StepResult(*told)
        what: Literal["loss", "gradient", "overflow"] = "loss"
        if math.isfinite(loss):
            what = "overflow" if self.arithmetic.may_overflow else "gradient"
        return StepResult(*told, what, self._guilty(batches, own[:, 0], what))

    def _guilty(self, batches: Sequence[StereoBatch], losses: Tensor, what: str) -> tuple[str, ...]:
        """Samples of the micro-batches whose loss is not finite, or of all if every loss is."""
        finite = losses.isfinite().tolist()
        names = [
            name
            for batch, good in zip(batches, finite, strict=True)
            for name in batch.names
            if what != "loss" or not good
        ]
        return tuple(gather_object(names))

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.arithmetic.scaler.step(self.optimizer)

    def _restore(self, statistics: Sequence[Tensor]) -> None:
        for buffer, before in zip(self.network.buffers(), statistics, strict=True):
            buffer.copy_(before)
