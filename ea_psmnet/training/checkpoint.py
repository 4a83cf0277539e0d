"""Checkpoints: the state of a run, its files, and the random generators."""

from __future__ import annotations

import errno
import io
import math
import os
import random
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from ea_psmnet.files import atomic_path, remove_leftovers
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.models.weights import save_model
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.logs import read_metrics
from ea_psmnet.training.network import WeightAverage
from ea_psmnet.training.processes import from_main


class RunState:
    """The network of a run and everything else that its checkpoints hold.

    Args:
        config: Configuration of the run.
        accelerator: Accelerator of the run.
        network: Network to train, on its device.
        parts: Other objects with a `state_dict`, by their names in a checkpoint.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        network: PSMNet,
        parts: Mapping[str, Any],
    ) -> None:
        self.config, self.accelerator, self.network = config, accelerator, network
        self.average = WeightAverage(network, config.ema) if config.ema else None
        self.start = 0
        """Number of steps taken before this start."""
        self.best = math.inf
        """Lowest EPE of all validations on the present images."""
        self.validated: int | None = None
        """Step after which the present images were last validated on."""
        chosen = (config.validate_data, config.validate_root, config.validate_count)
        self._validated_on = [str(value) for value in chosen]
        self.validation_due = False
        """Whether the weights must be validated before the next step."""
        self._parts = dict(parts) | ({"average": self.average} if self.average else {})
        self._checkpoints = config.out / "checkpoints"
        self._weights = config.out / "model.safetensors"

    def resume(self, steps: int) -> None:
        """Continue from the newest checkpoint, if there is one.

        Args:
            steps: Number of steps of the whole run.

        Raises:
            ValueError: The checkpoint belongs to another run, or checkpoints have been deleted.
        """
        state, lacking = None, False
        if self.accelerator.is_main_process:
            remove_leftovers(self.config.out)
            remove_leftovers(self._checkpoints)
            state, lacking = load_newest(self._checkpoints), not self._weights.is_file()
        state, lacking = from_main((state, lacking))
        if state is None:
            self._check_new()
            return
        self.start = state["step"]
        with refusing_strangers(self._checkpoints, self.start):
            self._restore(state, steps)
        if lacking:  # moved away: a finished run would end without them
            self.save_weights()

    def _check_new(self) -> None:
        """Refuse to begin a run anew that has taken more steps than it can without a checkpoint."""
        due = min(self.config.save_every, self.config.validate_every or self.config.save_every)
        records = self.config.out / "metrics.jsonl"
        taken = read_metrics(records)[-1:] if records.is_file() else []
        if taken and taken[0]["step"] > due and self._weights.is_file():
            raise ValueError(
                f"{self._checkpoints}: no checkpoint that can be read, but the run has taken "
                f"{taken[0]['step']:,} steps: train on from {self._weights} by --init in another "
                "--out, or delete it to begin anew"
            )

    def save(self, done: int) -> None:
        """Save the weights, then the checkpoint, from which a run continues."""
        states = gather_object([random_state()])
        self.save_weights()
        if not self.accelerator.is_main_process:
            return
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        own = {"model": self.network.state_dict(), "best": self.best, "random": states}
        own |= {"validation_due": self.validation_due, "validated": self.validated}
        own["validated_on"] = self._validated_on
        save_checkpoint(self._checkpoints, done, own | parts, self.config.keep)

    def save_weights(self) -> None:
        """Save the weights alone, for prediction."""
        network = self.result()
        if self.accelerator.is_main_process:
            save_model(self._weights, network)

    def result(self) -> PSMNet:
        """A copy of the network with the weights to use: averaged ones, if `ema` is set."""
        with torch.random.fork_rng(devices=[]):  # its initial weights are discarded
            network = PSMNet(self.network.config).to(self.accelerator.device)
        state = self.average.weights if self.average else self.network.state_dict()
        network.load_state_dict(state)
        if self.accelerator.num_processes > 1:
            for buffer in network.buffers():  # each process has its own batch statistics
                broadcast(buffer)
        return network.eval()

    def _restore(self, state: dict[str, Any], steps: int) -> None:
        if self.start > steps:
            raise ValueError(f"the run has {steps} steps")
        self.network.load_state_dict(state["model"])
        state = {"truth": {"steps": 0, "found": 1}} | state  # older checkpoints lack it
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._restore_validation(state, steps)
        own = self.accelerator.process_index
        if own < len(state["random"]):
            set_random_state(state["random"][own])

    def _restore_validation(self, state: dict[str, Any], steps: int) -> None:
        """Continue the search for the best weights, or begin it anew on other images."""
        self.best = float(state["best"])
        measured = self.start if math.isfinite(self.best) else None  # older checkpoints lack these
        self.validated = state.get("validated", measured)
        before = state.get("validated_on", self._validated_on)
        if not self.config.validate_every:
            self._validated_on = before
        elif before != self._validated_on:
            if math.isfinite(self.best) and self.accelerator.is_main_process:
                told = "validation is on other images than before: the best weights are sought anew"
                warnings.warn(told, stacklevel=2)
            self.best, self.validated = math.inf, None
        due = state.get("validation_due", False)
        unmeasured = self.start == steps and self.validated != steps
        self.validation_due = bool((due or unmeasured) and self.config.validate_every)


# Checkpoint files ---------------------------------------------------------------------------------


_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM}
"""Errors that do not mean that the file is damaged."""

_NAMES = r"step-[0-9]{7,}\.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write `step-0000123.pt` atomically, then delete all but the `keep` newest up to it.

    Raises:
        OSError: The checkpoint cannot be written; earlier ones remain.
    """
    buffer = io.BytesIO()  # torch's writer reports a full disk as a RuntimeError
    torch.save(state | {"step": step}, buffer)
    path = _path(folder, step)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # on the disk before it gets its name, in case of a power failure
    # Later checkpoints are damaged, or the run would have continued from them: they do not count.
    for old in [other for other in _newest_first(folder) if _step(other) <= step][keep:]:
        old.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Load the newest readable checkpoint to the CPU; None if there is none.

    Raises:
        ValueError: An undamaged file does not hold the step in its name.
        OSError: The file cannot be read, although it may not be damaged.
    """
    for path in _newest_first(folder):
        try:
            state = _load(path)
        except Exception as error:  # the unpickler may raise anything on damaged bytes
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _UNREADABLE:
                raise
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{path}: damaged, skipped ({reason})", stacklevel=2)
        else:
            if not isinstance(state, dict) or state.get("step") != _step(path):
                raise _stranger(path, "it does not hold the step in its name")
            return state
    return None


@contextmanager
def refusing_strangers(folder: Path, step: int) -> Iterator[None]:
    """Convert errors of restoring a checkpoint into one that names the file and the reason.

    Raises:
        ValueError: The checkpoint does not fit the run.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except KeyError as error:
        raise _stranger(_path(folder, step), f"it lacks {error}") from error
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _stranger(_path(folder, step), shorten(str(error), 200)) from error


def _stranger(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: not a checkpoint of this run ({reason}): move it away, or give another --out"
    )


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch verifies no checksums
    if damaged is not None:
        raise ValueError(f"{damaged} has changed")
    return torch.load(path, map_location="cpu", weights_only=True)


def _newest_first(folder: Path) -> list[Path]:
    """Files with exactly the names of checkpoints, newest first."""
    named = (path for path in folder.glob("step-*.pt") if re.fullmatch(_NAMES, path.name))
    own = [path for path in named if path == _path(folder, _step(path)) and path.is_file()]
    return sorted(own, key=_step, reverse=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.pt"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


# Random generators --------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators, as types that `weights_only` can load."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - code that uses the global generator resumes, too
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore states saved by `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
