"""What readers are asked for, checked in one way."""

from __future__ import annotations

from typing import get_args

from datasets.names import RenderPass, Split

__all__ = ["check_choice", "render_passes", "train_only"]


def check_choice(field: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError if `value` is none of the choices, which it lists."""
    if value not in choices:
        raise ValueError(f"{field}={value!r}; choose one of {', '.join(map(str, choices))}")


def train_only(split: Split, why: str) -> None:
    """Raise ValueError if a set is asked for another split than `train`, telling why not."""
    check_choice("split", split, get_args(Split))
    if split != "train":
        raise ValueError(f"split={split!r}: {why}; choose train")


def render_passes(render_pass: RenderPass) -> dict[str, str]:
    """Passes to read, by what to begin their frames' names with: only `both` needs to tell."""
    check_choice("render_pass", render_pass, get_args(RenderPass))
    if render_pass == "both":
        return {"clean": "clean", "final": "final"}
    return {"": render_pass}
