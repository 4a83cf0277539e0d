"""The training loop, the same on a CPU and, under torchrun, on many GPUs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ea_psmnet.datasets.workers import loaded
from ea_psmnet.files import write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.machine import device_name, is_first_process, single_opencv_thread
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.weights import save_model
from ea_psmnet.training.checkpoint import RunState
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import StepSampler, StereoBatch, training_samples, validation_samples
from ea_psmnet.training.logs import StepClock, expected_time
from ea_psmnet.training.memory import MemoryBudget, check_statistics
from ea_psmnet.training.network import initial_network, network_config, prepare_for_training
from ea_psmnet.training.processes import StopRequest, TrainingStopped, from_main, join_processes
from ea_psmnet.training.record import RunRecord
from ea_psmnet.training.run_folder import check_writable, claimed, recorded_micro_batch
from ea_psmnet.training.step import (
    FiniteGuard,
    OptimiserStep,
    StepResult,
    TruthGuard,
    choose_arithmetic,
)
from ea_psmnet.training.validation import spread, validate

_WORTH_TIMING = 500
"""Minimum number of samples of a run whose duration is estimated."""
_NEARLY = 1e-6
"""Steps by which a milestone may be missed, as 0.55 of 100 steps exceed 55 in floating point."""


def train(config: TrainingConfig) -> Path:
    """Train, or continue, the run that a configuration describes.

    Returns:
        The weights file, `model.safetensors` in the run folder, updated at every checkpoint.

    Raises:
        ValueError: The options do not work, or the run folder holds another configuration.
        FileNotFoundError: The dataset or the initial weights are missing.
        OSError: The run folder cannot be written.
        FloatingPointError: Too many consecutive steps were not finite.
        TrainingStopped: The run has saved after SIGTERM or Ctrl-C.
    """
    if is_first_process():
        check_writable(config.out)
    single_opencv_thread()
    accelerator = join_processes(config.device)
    trainer = _Trainer(config, accelerator)
    owned = claimed(trainer.config, trainer.network.config, trainer.samples.order.lengths)
    with owned if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        try:
            trainer.run()
        except TrainingStopped:
            accelerator.wait_for_everyone()  # otherwise a launcher may kill others that still save
            accelerator.end_training()
            raise
    accelerator.end_training()  # not after an error: the other processes may not answer
    return config.out / "model.safetensors"


class _Trainer:
    """The parts of a run and its loop."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.arithmetic = choose_arithmetic(config, accelerator.device.type)
        structure = network_config(config)
        self.samples, self.steps = training_samples(config)
        self._tell(f"training on {device_name(accelerator.device)}, {self._dtype}")
        self.validation = validation_samples(config) if config.validate_every else ()
        self.config = config = self._with_micro_batch(config, structure)
        set_seed(config.seed)
        self.network = initial_network(config, structure)
        model = prepare_for_training(self.network, config, accelerator)
        self.optimise = OptimiserStep(config, accelerator, self.network, model, self.arithmetic)
        self.guard = FiniteGuard()
        self.truth = TruthGuard(config.max_disparity)
        scaler = self.arithmetic.scaler
        parts = {
            "optimizer": self.optimise,
            "scaler": scaler,
            "guard": self.guard,
            "truth": self.truth,
        }
        self.state = RunState(config, accelerator, self.network, parts)

    def _with_micro_batch(self, config: TrainingConfig, structure: PSMNetConfig) -> TrainingConfig:
        """Set the micro-batch: as given, as the run started with, or the largest that fits.

        The main process decides for all, as free memory differs between GPUs and machines may not
        share a file system.
        """
        micro = from_main(config.micro_batch or recorded_micro_batch(config))
        accumulation = self._accumulation(config.batch, micro or 1)
        if micro is None or config.memory_check:
            budget = MemoryBudget(config, structure, self.arithmetic.dtype, self.accelerator.device)
            micro = micro or from_main(budget.micro_batch(accumulation))
            if config.memory_check:
                budget.check(micro)
        check_statistics(config, structure, micro)
        return replace(config, micro_batch=micro)

    def _accumulation(self, batch: int, micro: int) -> int:
        """Micro-batches per step and process."""
        processes = self.accelerator.num_processes
        return StepSampler(0, 1, batch=batch, micro=micro, world=processes).accumulation

    def run(self) -> None:
        """Train from the last checkpoint to the last step, or until a signal."""
        self.state.resume(self.steps)
        start, main = self.state.start, self.accelerator.is_main_process
        if start < self.steps:
            self._announce(self.steps - start)
        with (
            StopRequest() as stop,  # also while the summary is written: launchers repeat SIGTERM
            RunRecord(
                self.config.out,
                start,
                self.steps,
                self._facts(),
                validation_due=self.state.validation_due,
                enabled=main,
            ) as record,
            self._loaded() as batches,
        ):
            if self.state.validation_due:  # it was interrupted
                self._end_turn(start, record, stop)
            for step in range(start, self.steps):
                self._turn(step, batches, record, stop)

    def _announce(self, steps: int) -> None:
        """Print how the batch is split and, for a long run, its estimated duration."""
        batch, processes = self.config.batch, self.accelerator.num_processes
        turns = self._accumulation(batch, self._micro)
        self._tell(
            f"{self._facts()['parameters']:,} parameters; batch {batch} = {self._micro} at once x "
            f"{turns} in turn x {processes} process{'es' * (processes > 1)}; {steps:,} steps"
        )
        if self.config.compile or steps * batch < _WORTH_TIMING:
            return
        seconds = self.optimise.seconds_a_sample() * batch / processes * steps
        self._tell(expected_time(seconds, self.accelerator.device.type))

    def _tell(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, file=sys.stderr)

    @property
    def _dtype(self) -> str:
        return str(self.arithmetic.dtype).removeprefix("torch.")

    def _facts(self) -> dict[str, Any]:
        """Facts about the run for its record, besides the configuration."""
        device = self.accelerator.device
        return {
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "precision": self._dtype,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self.accelerator.num_processes,
        }

    def _turn(
        self, step: int, batches: Iterator[StereoBatch], record: RunRecord, stop: StopRequest
    ) -> None:
        """Take a step, and do what is due after it."""
        figures = self._step(step, batches, record, stop)
        done = step
        if figures is not None:
            done += 1
            record.step(done, figures)
            every = self.config.validate_every
            self.state.validation_due = every is not None and self._due(done, every)
            if self.state.validation_due:
                self.state.save(done)  # a kill, or a damaged image, loses no step
        self._end_turn(done, record, stop)

    def _end_turn(self, done: int, record: RunRecord, stop: StopRequest) -> None:
        """Validate and save if due; a validation that a signal interrupts stays due."""
        validating = self.state.validation_due
        if validating:
            self._validate(done, record, stop)
        finished = done == self.steps and not self.state.validation_due
        signal = 0 if finished else self._agree_on(stop.number)
        if signal or validating or self._due(done, self.config.save_every):
            self.state.save(done)
        if signal:
            raise TrainingStopped(signal, done)

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.steps

    def _step(
        self, step: int, batches: Iterator[StereoBatch], record: RunRecord, stop: StopRequest
    ) -> dict[str, float] | None:
        """Take a step and return its figures; None if a signal interrupted it."""
        clock = StepClock()
        rate = learning_rate(self.config, step, self.steps)
        # A single process can stop at once; several agree between steps.
        alone = self.accelerator.num_processes == 1
        result = self.optimise(
            clock.timed(stop.until_signal(batches) if alone else batches),
            self._accumulation(self.config.batch, self._micro),
            rate,
            lambda: alone and stop.number > 0,
        )
        if result is None:
            return None
        self._judge(step, result, record)
        figures = {"loss": result.loss, "epe": result.epe, "gradient_norm": result.gradient_norm}
        figures |= {"lr": rate, "skipped": self.guard.skipped}
        figures |= {f"loss_{number}": loss for number, loss in enumerate(result.outputs, 1)}
        return figures | clock.figures(self.config.batch)

    def _judge(self, step: int, result: StepResult, record: RunRecord) -> None:
        """Count a skipped step; update the averaged weights after any other."""
        self.truth.saw(result.pixels)
        if result.skipped in ("loss", "gradient"):
            try:
                record.note(self.guard.skip(step + 1, result.skipped, result.names))
            except FloatingPointError:  # its message refers to these weights
                self.state.save_weights()
                raise
        elif not result.skipped:
            self.guard.passed()
            if self.state.average is not None:
                self.state.average.update(self.network)

    def _agree_on(self, signal: int) -> int:
        """The signal that any process received; 0 for none."""
        if self.accelerator.num_processes == 1:
            return signal
        own = torch.tensor([signal], device=self.accelerator.device)
        return int(self.accelerator.gather(own).max())

    @property
    def _micro(self) -> int:
        assert self.config.micro_batch is not None  # set in __init__
        return self.config.micro_batch

    def _loaded(self) -> AbstractContextManager[Iterator[StereoBatch]]:
        """The micro-batches of this process from the start on."""
        return loaded(
            self.samples,
            self.config.workers,
            batch_sampler=StepSampler(
                self.state.start,
                self.steps,
                batch=self.config.batch,
                micro=self._micro,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
            ),
            collate_fn=StereoBatch.stack_or_error,
        )

    def _validate(self, done: int, record: RunRecord, stop: StopRequest) -> None:
        network = self.state.result()
        exact = self.arithmetic.dtype == torch.float32
        device = self.accelerator.device.type
        matcher = StereoMatcher(network, device=device, precision="exact" if exact else "auto")
        indices = spread(len(self.validation), self.config.validate_count)
        outcome = validate(
            matcher, self.validation, indices, self.accelerator, self.config.workers, stop
        )
        if outcome is None:
            return
        self.state.validation_due, self.state.validated = False, done
        record.validation(done, outcome)
        epe = outcome.errors.epe
        if epe < self.state.best:
            self.state.best = epe
            if self.accelerator.is_main_process:
                save_model(self.config.out / "best.safetensors", network)
                figures = outcome.errors.figures() | {"step": done, "images": outcome.images}
                write_json(self.config.out / "best.json", figures)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Learning rate at a step, counted from 0, of a run of `steps` steps.

    `cosine` is that of Loshchilov and Hutter, ICLR 2017, without restarts; `one-cycle` warms up
    linearly over the first twentieth of the run, and then follows it.
    """
    if config.schedule == "step":
        return config.lr * config.decay ** sum(
            step >= share * steps - _NEARLY for share in config.milestones
        )
    rise = max(1, steps // 20) if config.schedule == "one-cycle" else 0
    if step < rise:
        return config.lr * ((step + 1) / rise)
    if config.schedule == "constant":
        return config.lr
    return config.lr * (0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))))
