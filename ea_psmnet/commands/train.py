"""`train`: from a dataset to a checkpoint."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import tyro

from ea_psmnet.machine import use_threads
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.signals import TrainingStopped, end_with_launcher

__all__ = ["train"]


def train(
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")], *, threads: int | None = None
) -> int:
    """Train a network, or continue a run: the same command picks up at its last checkpoint.

    Exit codes: 0 done; 2 cannot go on (one line says why); 130 stopped by Ctrl-C and 143 by
    SIGTERM, saved if a step was taken.

    Args:
        config: What is trained, on what, and how.
        threads: Threads that compute on the CPU; default: one a core, or OMP_NUM_THREADS.
    """
    end_with_launcher()  # before the imports, which take some seconds
    from torch.distributed.elastic.multiprocessing.errors import record

    from ea_psmnet.training.loop import train as run

    use_threads(threads)
    try:
        print(record(run)(config))  # tells torchrun, if it is there, of what ends the run
    except TrainingStopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # one line, however many processes
            print(stopped, file=sys.stderr)
        return stopped.exit_code
    return 0
