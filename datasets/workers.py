"""Errors of a loader's worker processes, told as if they had been met in this one."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from torch.utils.data import Dataset

__all__ = ["ErrorsAsValues", "raise_errors"]


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
        except (OSError, ValueError) as error:
            return error


def raise_errors(values: Iterable[Any]) -> Generator[Any, None, None]:
    """Pass values on and raise the first that is an exception; closing it ends the iteration."""
    for value in values:
        if isinstance(value, Exception):
            raise value
        yield value
