"""The training loop: one road for a laptop's CPU and, under torchrun, for many GPUs."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.builder import build_dataset
from datasets.workers import ErrorsAsValues, raise_errors
from ea_psmnet.files import write_json
from ea_psmnet.losses import stereo_loss
from ea_psmnet.machine import choose_device, has_fast_bfloat16
from ea_psmnet.models.config import preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_into, save_model
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.checkpoint import load_newest, save_checkpoint
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import StepSampler, StereoBatch, TrainingSamples

__all__ = ["SCENE_FLOW_SAMPLES", "learning_rate", "train"]

SCENE_FLOW_SAMPLES = 35_454
"""Training pairs of Scene Flow: the length of an epoch of rendered scenes, too."""

_MAY_CHANGE = frozenset({"out", "device", "workers", "save_every"})
"""Settings that a continued run may change: they do not change what is to be computed."""

_BF16_BROKEN_AT = (16, 32)
"""Maximum disparities whose volumes are two deep somewhere: there the CPU's bfloat16 gradient of a
convolution's weights reads uninitialised memory (oneDNN in torch 2.15, both memory layouts)."""


def train(config: TrainingConfig) -> Path:
    """Train, or continue, the run that a configuration describes.

    Returns:
        The weights file, `model.safetensors` in the run folder, refreshed at every checkpoint.

    Raises:
        ValueError: settings that cannot work, or a run folder of another configuration.
        FileNotFoundError: no dataset, or no initial weights.
    """
    accelerator = _accelerator(config)
    try:
        trainer = _Trainer(config, accelerator)
        if accelerator.is_main_process:
            _claim_run_folder(replace(config, micro_batch=trainer.micro))
        accelerator.wait_for_everyone()
        trainer.run()
    finally:
        accelerator.end_training()
    return config.out / "model.safetensors"


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate at a step: constant, or linear up to `lr` and a half cosine down to zero."""
    if config.schedule == "constant":
        return config.lr
    rise = max(1, steps // 20)
    if step < rise:
        return config.lr * (step + 1) / rise
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _accelerator(config: TrainingConfig) -> Accelerator:
    device = choose_device(config.device)
    broken = device == "cpu" and config.max_disparity in _BF16_BROKEN_AT
    if broken and config.precision == "bf16":
        raise ValueError(
            f"bf16 on a CPU cannot train max disparity {config.max_disparity}: take 48 or more, "
            "or --precision fp32"
        )
    fast = config.precision == "auto" and has_fast_bfloat16(device) and not broken
    bf16 = config.precision == "bf16" or fast
    AcceleratorState._reset_state()  # a run before this one may have had another precision
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if bf16 else "no")


def _claim_run_folder(config: TrainingConfig) -> None:
    """Record the settings, or refuse a folder that holds a run of others."""
    path, settings = config.out / "config.json", config.to_dict()
    if path.is_file():
        recorded = _recorded_settings(path)
        for name in sorted(settings.keys() - _MAY_CHANGE):
            if settings[name] != recorded.get(name):
                raise ValueError(
                    f"{config.out}: holds a run with {name} {recorded.get(name)}, "
                    f"not {settings[name]}: give the same settings or another --out"
                )
    elif (config.out / "model.safetensors").exists():
        raise ValueError(f"{config.out}: holds weights of something else: give another --out")
    write_json(path, settings)


def _recorded_settings(path: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(path.read_text())
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(f"{path}: damaged: delete it, or give another --out")
    return recorded


def _training_set(config: TrainingConfig) -> tuple[Sequence[StereoSample], int]:
    """The dataset and the number of steps."""
    if config.data == "synthetic":
        steps = config.steps or max(1, config.epochs * SCENE_FLOW_SAMPLES // config.batch)
        dataset = build_dataset(
            "synthetic",
            seed=config.seed,
            size=config.crop,
            count=steps * config.batch,
            max_disparity=config.max_disparity,
        )
        return dataset, steps
    dataset = build_dataset(config.data, config.root or "", render_pass=config.render_pass)
    return dataset, config.steps or max(1, config.epochs * len(dataset) // config.batch)


class _Trainer:
    """The parts of a run, its state and its one loop."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.accelerator = accelerator
        dataset, self.steps = _training_set(config)
        self.samples = TrainingSamples(dataset, config.crop, config.seed)
        self.samples[0]  # a crop that does not fit shows here, before anything is written
        self.micro = config.micro_batch or max(1, config.batch // accelerator.num_processes)
        self.start = 0
        sampler = self._sampler()
        self.accumulation = len(sampler) // len(sampler.steps)
        self._micro_batches = self.accumulation * accelerator.num_processes
        set_seed(config.seed)
        network = build_model(replace(preset(config.preset), max_disparity=config.max_disparity))
        if config.init is not None:
            load_into(network, config.init)
        to_channels_last(network)
        optimizer = torch.optim.Adam(network.parameters(), config.lr, betas=(0.9, 0.999))
        self.network: PSMNet = network
        self.model, self.optimizer = accelerator.prepare(network.train(), optimizer)

    def run(self) -> None:
        """Train from the last checkpoint to the last step."""
        self._resume()
        main = self.accelerator.is_main_process
        with (
            tqdm(total=self.steps, initial=self.start, unit="step", disable=not main) as bar,
            self._writer() as writer,
        ):
            batches = raise_errors(self._loader())
            for step in range(self.start, self.steps):
                figures = self._step(step, batches)
                bar.update()
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
                if writer is not None:
                    for name, value in figures.items():
                        writer.add_scalar(f"train/{name}", value, step)
                    writer.add_scalar("train/lr", self.optimizer.param_groups[0]["lr"], step)
                done = step + 1
                if main and (done % self.config.save_every == 0 or done == self.steps):
                    self._save(done)

    def _writer(self) -> contextlib.AbstractContextManager[SummaryWriter | None]:
        """TensorBoard's, in the main process; steps that a resumed run repeats are dropped."""
        if not self.accelerator.is_main_process:
            return contextlib.nullcontext()
        folder = self.config.out / "tensorboard"
        return contextlib.closing(SummaryWriter(folder, purge_step=self.start))

    def _step(self, step: int, batches: Iterator[StereoBatch]) -> dict[str, float]:
        """One optimiser step over all micro-batches of all processes; returns loss and EPE."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.steps)
        self.optimizer.zero_grad()
        sums = torch.zeros(3, device=self.accelerator.device)
        for index in range(self.accumulation):
            last = index == self.accumulation - 1
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            with sync:
                sums += self._backward(next(batches).to(self.accelerator.device))
        loss, error, pixels = self.accelerator.reduce(sums, "sum").tolist()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if not math.isfinite(loss) or not nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(
                f"loss or gradient is not finite at step {step}: lower --lr, or use "
                "--precision fp32; the same command goes on from the last checkpoint"
            )
        self.optimizer.step()
        return {"loss": loss / self._micro_batches, "epe": error / max(1, pixels)}

    def _backward(self, batch: StereoBatch) -> Tensor:
        """Accumulate one micro-batch's gradients; returns loss, sum of errors, counted pixels."""
        limit = self.config.max_disparity
        outputs = self.model(batch.left.float() / 255, batch.right.float() / 255)
        loss = stereo_loss(outputs, batch.disparity, batch.valid, limit)
        self.accelerator.backward(loss / self.accumulation)
        counted = batch.valid & (batch.disparity < limit)
        error = (outputs[-1].detach() - batch.disparity).abs()[counted].sum()
        return torch.stack([loss.detach(), error, counted.sum()])

    def _sampler(self) -> StepSampler:
        return StepSampler(
            self.start,
            self.steps,
            batch=self.config.batch,
            micro=self.micro,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _loader(self) -> DataLoader[StereoSample]:
        return DataLoader(
            ErrorsAsValues(self.samples),
            batch_sampler=self._sampler(),
            collate_fn=StereoBatch.stack_or_error,
            num_workers=self.config.workers,
        )

    def _resume(self) -> None:
        folder = self.config.out / "checkpoints"
        # The main process's, for all: machines need not share a file system.
        shared = [load_newest(folder) if self.accelerator.is_main_process else None]
        state = broadcast_object_list(shared)[0]
        if state is not None:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.start = state["step"]

    def _save(self, done: int) -> None:
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self.config.out / "checkpoints", done, state)
        save_model(self.config.out / "model.safetensors", self.network)
