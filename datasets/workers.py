"""Samples from worker processes, whose errors, signals and deaths are met in this one."""

from __future__ import annotations

import re
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import Queue, active_children
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["ErrorsAsValues", "loaded", "raise_errors"]


class ErrorsAsValues(Dataset[Any]):
    """A dataset that returns what a user can mend instead of raising it.

    Raised in a worker, it would reach them as that worker's traceback.
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
    """Pass values on and raise the first that is an exception; closing it ends the iteration."""
    for value in values:
        if isinstance(value, Exception):
            raise value
        yield value


@contextmanager
def loaded(dataset: Any, workers: int, **options: Any) -> Iterator[Iterator[Any]]:
    """The samples of a dataset as a `DataLoader` with these options gives them.

    Workers leave signals to this process, and none is left when the block ends, however it does.
    What they send should hold NumPy arrays, which come through a pipe: tensors would take shared
    memory, of which containers have little, and an open file each.

    Args:
        dataset: anything with `__getitem__`.
        workers: processes; 0 loads in this one.
        options: of the `DataLoader`.

    Raises:
        OSError: workers cannot be started, or one has died; anywhere in the block.
    """
    loader: DataLoader[Any] = DataLoader(
        ErrorsAsValues(dataset),
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else it would draw from the program's
        **options,
    )
    others, iterator = set(active_children()), None
    try:
        iterator = _started(loader)
        with closing(raise_errors(iterator)) as values:
            yield values
    except RuntimeError as error:  # which torch's handler of SIGCHLD raises wherever we are
        if "DataLoader worker (pid" not in str(error):  # but a worker's own error
            raise
        raise ChildProcessError(_told(str(error))) from error
    finally:
        if workers and iterator is not None:
            # Not left to its last reference: a traceback may hold that to the end of the program.
            iterator._shutdown_workers()
        for worker in set(active_children()) - others:
            worker.kill()  # stuck, and deaf to the signal that the program would wait with
            worker.join()


def _started(loader: DataLoader[Any]) -> Any:
    try:
        if loader.num_workers:
            Queue().close()  # first: a half-made iterator would end in a traceback of its own
        return iter(loader)
    except OSError as error:
        raise OSError(
            f"processes that load samples cannot be started ({error.strerror or error}): give "
            f"fewer --workers than {loader.num_workers}, 0 for none; they need a little room in "
            "/dev/shm, and open files (ulimit -n)"
        ) from error


def _ignore_signals(worker: int) -> None:
    """Let only the main process answer: Ctrl-C and SLURM signal its workers, too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _told(message: str) -> str:
    """What torch says of a worker's death, in a line with the likely cause and the remedy."""
    found = re.search(r"by signal: ([^.]+)", message)  # not told where its pipe closed first
    how = f" ({found[1].strip()})" if found else ""
    return (
        f"a process that loads samples has died{how}, most likely because memory ran out: the same "
        "command goes on; give it fewer --workers, or 0 for none, if it happens again"
    )
