"""`python -m ea_psmnet COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ea_psmnet.commands.ablate import ablate
from ea_psmnet.commands.attention_maps import attention_maps
from ea_psmnet.commands.compare import compare
from ea_psmnet.commands.data import data
from ea_psmnet.commands.evaluate import evaluate
from ea_psmnet.commands.predict import predict
from ea_psmnet.commands.render import render
from ea_psmnet.commands.resources import resources
from ea_psmnet.commands.train import train
from ea_psmnet.machine import keep_freed_memory

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "ablate": ablate,
    "data": data,
    "render": render,
    "attention-maps": attention_maps,
    "resources": resources,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, whose result may be the exit code; bad input is one line on stderr and 2."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # its errors are told by ours, in one line
    keep_freed_memory()
    try:
        result = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="python -m ea_psmnet",
            description="Stereo depth with attention.",
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
