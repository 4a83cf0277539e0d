"""Tables and quantities as text, and what names and numbers of options may be."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

_T = TypeVar("_T")

_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_MOST_BYTES = 2**60


def markdown_table(
    rows: Sequence[Mapping[str, object]],
    digits: Mapping[str, int] | None = None,
    bold_smallest: Collection[str] = (),
) -> str:
    """Format rows with equal keys as an aligned Markdown table; NaN and None become a dash.

    Columns whose first value is text are left-aligned. Numbers have two decimals, or those in
    `digits`; in the columns `bold_smallest` the smallest of several is set in bold.
    """
    header = list(rows[0])
    decimals = dict.fromkeys(header, 2) | dict(digits or {})
    best = {n: _smallest([row[n] for row in rows]) for n in header if n in bold_smallest}
    cells = [
        header,
        *([_cell(row[n], decimals[n], bold=row[n] == best.get(n)) for n in header] for row in rows),
    ]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(header))]
    left = [isinstance(rows[0][name], str) for name in header]
    dashes = ["-" * (width - 1) for width in widths]
    rule = [f":{d}" if is_left else f"{d}:" for d, is_left in zip(dashes, left, strict=True)]
    lines = []
    for line in (header, rule, *cells[1:]):
        columns = zip(line, widths, left, strict=True)
        padded = (text.ljust(w) if is_left else text.rjust(w) for text, w, is_left in columns)
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _smallest(values: Sequence[object]) -> float:
    """Smallest of several numbers; NaN, which equals nothing, for fewer than two."""
    numbers = [v for v in values if isinstance(v, float) and not math.isnan(v)]
    return min(numbers) if len(numbers) > 1 else math.nan


def _cell(value: object, digits: int, *, bold: bool) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    text = f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("|", "\\|")
    return f"**{text}**" if bold else text


def format_bytes(count: float) -> str:
    """Format a number of bytes in binary units, as `9.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def parse_bytes(text: str) -> int:
    """Parse a number of bytes with a unit (B, KiB, MiB, GiB, KB, MB or GB), such as `11GiB`.

    Raises:
        ValueError: The text is not a number with a unit, or the number is too large.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"'{text}' is not a size in bytes: write it as 11GiB or 500MB")
    count = float(match[1]) * _UNITS[match[2].upper()]
    if count >= _MOST_BYTES:
        raise ValueError(f"'{text}' is too large")
    return int(count)


def check_choice(what: str, value: object, choices: Iterable[object]) -> None:
    """Check that a value is one of some choices.

    Raises:
        ValueError: It is not; the message lists the choices.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: choose from {', '.join(map(str, known))}")


def build_choice(
    what: str,
    table: Mapping[str, Callable[..., _T]],
    name: str,
    options: Mapping[str, Any],
    *arguments: Any,
) -> _T:
    """Build an instance of the class in `table` from its positional and keyword arguments.

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


def check_counts(**counts: int) -> None:
    """Raise a ValueError unless every count is a whole number above zero."""
    for name, count in counts.items():
        if not is_whole(count) or count < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {count!r}")


def whole_number(name: str, value: Any) -> int:
    """Convert a whole number of any type, for example NumPy's, to a plain one, for JSON.

    Raises:
        ValueError: It is not a whole number.
    """
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of any type; true and false are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that a number lies from `low` to `high`.

    Raises:
        ValueError: It does not, or it is NaN.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low} to {high}")
