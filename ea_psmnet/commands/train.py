"""`train`: from a dataset to a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.machine import is_first_process, use_threads
from ea_psmnet.training.config import (
    DataOptions,
    MachineOptions,
    NetworkOptions,
    OptimisationOptions,
    RunOptions,
    TrainingConfig,
)
from ea_psmnet.training.processes import TrainingStopped, end_with_launcher


def _grouped(
    out: Path,
    data: DataOptions,
    network: NetworkOptions,
    optimisation: OptimisationOptions,
    machine: MachineOptions,
    run: RunOptions,
) -> TrainingConfig:
    """Build a configuration from its groups, which are the groups of the help text.

    Args:
        out: Run folder for checkpoints, weights and logs. The same command continues a run.
        data: Training data.
        network: Network and initial weights.
        optimisation: Batches, loss and optimisation.
        machine: Device, precision and speed.
        run: Checkpoints, validation and safety.
    """
    groups = (data, network, optimisation, machine, run)
    return TrainingConfig(out, **{k: v for group in groups for k, v in vars(group).items()})


def train(
    config: tyro.conf.OmitArgPrefixes[
        Annotated[TrainingConfig, tyro.conf.arg(name="", constructor=_grouped)]
    ],
    *,
    threads: int | None = None,
) -> int:
    """Train a network, or continue a run: the same command continues from its last checkpoint.

    Exit codes: 0 finished; 2 cannot continue (one line says why); 130 stopped by Ctrl-C and 143 by
    SIGTERM, saved if a step was taken.

    Args:
        config: Configuration of the run.
        threads: Number of CPU threads; default: one per core, or OMP_NUM_THREADS.
    """
    end_with_launcher()  # before the imports, which take some seconds
    from torch.distributed.elastic.multiprocessing.errors import record

    from ea_psmnet.training.loop import train as run

    use_threads(threads)
    try:
        weights = record(run)(config)  # reports an error that ends the run to torchrun
    except TrainingStopped as stopped:
        if is_first_process():
            print(stopped, file=sys.stderr)
        return stopped.exit_code
    if is_first_process():
        print(weights)
    return 0
