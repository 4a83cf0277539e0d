"""`python -m ea_psmnet COMMAND`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import tyro

from ea_psmnet.commands.ablate import ablate
from ea_psmnet.commands.app import app
from ea_psmnet.commands.attention_maps import attention_maps
from ea_psmnet.commands.compare import compare
from ea_psmnet.commands.data import check, data, show
from ea_psmnet.commands.doctor import doctor
from ea_psmnet.commands.evaluate import evaluate
from ea_psmnet.commands.predict import predict
from ea_psmnet.commands.render import render
from ea_psmnet.commands.resources import resources
from ea_psmnet.commands.train import train
from ea_psmnet.console import exit_code, show_warning, without_empty_defaults
from ea_psmnet.machine import keep_freed_memory

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "doctor": doctor,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "ablate": ablate,
    "data": data,
    "render": render,
    "app": app,
    "attention-maps": attention_maps,
    "resources": resources,
}
_ABOUT = """Stereo depth with attention.

Exit codes: 0 done; 1 done in part, or something was found, as the command's help says; 2 wrong
input or options, or no memory; 130 and 143 ended by Ctrl-C and SIGTERM; 141 output unread.
"""
GROUPS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": {"check": check, "show": show, "render": render},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; for the result see `exit_code`."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # the program reports its errors itself
    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else list(arguments)
    return exit_code(lambda: _asked(given)())


def _asked(arguments: Sequence[str]) -> Callable[[], Any]:
    """Parse a command line; returns the command with its options.

    Each command has its own parser, so that messages about unknown options refer to that command.
    """
    program, about = "python -m ea_psmnet", _ABOUT
    commands = COMMANDS
    marks = tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName
    with without_empty_defaults():
        while arguments and arguments[0] in commands:
            name, *arguments = arguments
            program += f" {name}"
            if name not in GROUPS:
                return tyro.cli(_later(commands[name]), args=arguments, prog=program, config=marks)
            about, commands = commands[name].__doc__ or "", GROUPS[name]
        later = {name: _later(command) for name, command in commands.items()}
        return tyro.extras.subcommand_cli_from_dict(
            later, args=arguments, prog=program, description=about, config=marks
        )


def _later(command: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Defer a command until its output is no longer captured by the parser."""

    @wraps(command)
    def parsed(*values: Any, **options: Any) -> Callable[[], Any]:
        return partial(command, *values, **options)

    return parsed


if __name__ == "__main__":
    warnings.showwarning = show_warning
    sys.exit(main())
