"""One way to refuse an option that does not exist."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_choice"]


def check_choice(what: str, name: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    if name not in choices:
        raise ValueError(f"unknown {what} '{name}': choose from {', '.join(choices)}")
