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
from ea_psmnet.console import exit_code
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
    """Run a command; see `exit_code` for the result."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # its errors are told by ours, in one line
    keep_freed_memory()
    return exit_code(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="python -m ea_psmnet",
            description="Stereo depth with attention.",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
