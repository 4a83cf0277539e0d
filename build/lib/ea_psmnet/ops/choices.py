"""Building what a name in a table stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ea_psmnet.tables import check_choice

__all__ = ["build_choice"]

_T = TypeVar("_T")


def build_choice(
    what: str,
    table: Mapping[str, Callable[..., _T]],
    name: str,
    options: Mapping[str, Any],
    *arguments: Any,
) -> _T:
    """Build an instance of the class that a table has for a name.

    Args:
        what: What is chosen, for error messages.
        table: Classes by name.
        name: Name of the class to build.
        options: Keyword arguments of the class.
        arguments: Positional arguments of the class, which are not options.

    Raises:
        ValueError: Unknown name or option; the message lists the choices.
    """
    check_choice(what, name, list(table))
    known = list(inspect.signature(table[name]).parameters)[len(arguments) :]
    unknown = sorted(set(options) - set(known))
    if unknown:
        choices = f"choose from {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{what} '{name}' has no option '{unknown[0]}': {choices}")
    return table[name](*arguments, **options)
