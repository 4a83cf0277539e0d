"""Load samples in worker processes, and handle their errors, signals and crashes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import Queue, active_children
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ea_psmnet.machine import when_parent_ends


class ErrorsAsValues(Dataset[Any]):
    """A dataset that returns errors that a user can fix instead of raising them.

    Raised in a worker, an error would be shown as that worker's traceback.
    """

    def __init__(self, base: Any) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.base[index]
        except (MemoryError, OSError, ValueError) as error:
            return error


def raise_errors(values: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield the values, and raise the first one that is an exception."""
    for value in values:
        if isinstance(value, Exception):
            raise value
        yield value


@contextmanager
def loaded(dataset: Any, workers: int, **options: Any) -> Iterator[Iterator[Any]]:
    """Iterate over the samples of a dataset with a `DataLoader`.

    Workers ignore signals, which this process handles, and all have ended when the block ends.
    Samples should hold NumPy arrays, which are sent through a pipe: tensors need shared memory, of
    which containers have little, and an open file each.

    Args:
        dataset: Any object with `__getitem__`.
        workers: Number of worker processes; 0 loads in this process.
        **options: Further arguments of the `DataLoader`.

    Raises:
        OSError: Workers cannot be started, or one has died; may be raised anywhere in the block.
    """
    loader: DataLoader[Any] = DataLoader(
        ErrorsAsValues(dataset),
        num_workers=workers,
        worker_init_fn=_leave_to_main,
        generator=torch.Generator(),  # otherwise it would draw from the global one
        **options,
    )
    others, iterator = set(active_children()), None
    try:
        iterator = _started(loader)
        with closing(raise_errors(iterator)) as values:
            yield values
    except RuntimeError as error:  # raised anywhere by torch's SIGCHLD handler
        if "DataLoader worker (pid" not in str(error):  # an error of our own
            raise
        raise ChildProcessError(_told(str(error))) from error
    finally:
        if workers and iterator is not None:
            # Explicit, because a traceback may keep the last reference until the program ends.
            iterator._shutdown_workers()
        for worker in set(active_children()) - others:
            worker.kill()  # stuck, and ignoring SIGTERM
            worker.join()


def _started(loader: DataLoader[Any]) -> Any:
    try:
        if loader.num_workers:
            Queue().close()  # first, as an incomplete iterator would print a traceback
        return iter(loader)
    except OSError as error:
        raise OSError(
            f"processes that load samples cannot be started ({error.strerror or error}): use "
            f"fewer --workers than {loader.num_workers}, or 0 for none; they need some space in "
            "/dev/shm and open files (ulimit -n)"
        ) from error


def _leave_to_main(worker: int) -> None:
    """Leave signals to the main process, as Ctrl-C and SLURM also signal its workers; end with it.

    Torch's workers notice the end of the main process, too, but may wait forever to send a sample.
    """
    when_parent_ends(lambda: os._exit(1))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _told(message: str) -> str:
    """Turn torch's message about a worker's death into one line with likely cause and remedy."""
    found = re.search(r"by signal: ([^.]+)", message)  # missing if the worker's pipe closed first
    how = f" ({found[1].strip()})" if found else ""
    return (
        f"a process that loads samples has died{how}, most likely because memory ran out: run the "
        "same command again to continue, with fewer --workers, or 0 for none, if it happens again"
    )
