"""Typed reading of JSON files, with errors in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from ea_psmnet.atomic import readable

T = TypeVar("T")

Place = tuple[int | str, ...]
"""Path of names and indices to a value."""

_SHOWN = 40
"""Number of characters of a wrong value that a message shows."""


def read_record(
    path: Path,
    kind: type[T],
    *,
    finite: bool = True,
    remedy: str = "",
) -> T:
    """Read a JSON file as a dataclass or another type, strictly: unknown fields are errors.

    Args:
        path: The file.
        kind: Type of its content, as a dataclass or `dict[str, str]`. The checks of a dataclass's
            constructor apply.
        finite: Whether NaN and infinity are errors.
        remedy: Advice for a damaged file, at the end of the message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON of this type; the message names the file and the field.
        OSError: The file cannot be read.
    """
    with readable(path):
        data = path.read_bytes()
    return parse_record(data, kind, str(path), finite=finite, remedy=remedy)


def parse_record(
    data: bytes | str,
    kind: type[T],
    source: str,
    *,
    finite: bool = True,
    remedy: str = "",
) -> T:
    """Like `read_record` for text from elsewhere, which messages call `source`."""
    from pydantic import TypeAdapter, ValidationError  # late: slow to import
    from pydantic_core import from_json

    try:
        values = TypeAdapter(kind).validate_json(data, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        told = _told(first["type"], first["loc"], first["msg"], first["input"])
    else:
        wrong = next(_not_finite(from_json(data), ()), None) if finite else None
        if wrong is None:
            return values
        told = f"{_field(wrong)} must be finite"
    raise ValueError(f"{source}: {told}" + (f"; {remedy}" if remedy else ""))


def _told(kind: str, place: Place, message: str, value: Any) -> str:
    """Message about a wrong value, as `methods[0].label should be a valid string, not 5`."""
    if kind == "json_invalid":
        return message.replace("Invalid", "invalid", 1)
    if kind == "value_error":  # raised by the dataclass
        message = message.removeprefix("Value error, ")
        return f"{_field(place)}: {message}" if place else message
    if kind == "missing":
        return f"{_field(place)} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{_field(place)} is unknown: made by another version?"
    text = repr(value)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{_field(place)} {message.removeprefix('Input ')}, not {shown}"


def _field(place: Place) -> str:
    """Format the path to a value, as `methods[0].label`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".") or "the content"


def _not_finite(value: Any, place: Place) -> Iterator[Place]:
    """Paths of NaN and infinity in parsed JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for step, each in inner:
            yield from _not_finite(each, (*place, step))
