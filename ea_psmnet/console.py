"""What a program tells its caller: an exit code, and one line where the input was bad."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["exit_code"]


def exit_code(program: Callable[[], Any]) -> int:
    """Run a program, whose result may be its exit code; bad input is one line on stderr and 2."""
    try:
        result = program()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0
