"""Work shared among the processes of one launch (torchrun), and what they found put together."""

from __future__ import annotations

import os
from typing import TypeVar

__all__ = ["gather", "join", "process_count", "process_index"]

T = TypeVar("T")


def process_index() -> int:
    """This process's place in the launch; 0 where it runs alone."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Join the launch, and take this process's GPU where there are some: before models load.

    Nothing happens in a process that runs alone; a second call changes nothing.
    """
    if process_count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def gather(values: list[T]) -> list[T]:
    """The values of all processes, in the order of the processes; every process gets them."""
    if process_count() == 1:
        return values
    from accelerate.utils import gather_object

    join()
    return gather_object(values)
