"""`python -m ea_psmnet COMMAND`, or `ea-psmnet COMMAND` where the package is installed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import tyro

from ea_psmnet import __version__
from ea_psmnet.commands.ablate import ablate
from ea_psmnet.commands.app import app
from ea_psmnet.commands.attention_maps import attention_maps
from ea_psmnet.commands.compare import compare
from ea_psmnet.commands.data import check, data, show
from ea_psmnet.commands.doctor import doctor
from ea_psmnet.commands.evaluate import evaluate
from ea_psmnet.commands.export import export
from ea_psmnet.commands.info import info
from ea_psmnet.commands.predict import predict
from ea_psmnet.commands.render import render
from ea_psmnet.commands.resources import resources
from ea_psmnet.commands.submission import submission
from ea_psmnet.commands.train import train
from ea_psmnet.console import exit_code, show_warning, without_empty_defaults
from ea_psmnet.machine import keep_freed_memory

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict,
    "doctor": doctor,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "compare": compare,
    "ablate": ablate,
    "data": data,
    "app": app,
    "attention-maps": attention_maps,
    "resources": resources,
    "submission": submission,
    "info": info,
}
_ABOUT = """Stereo depth with attention.

--version prints the version, --tyro-print-completion {bash,zsh,tcsh} the shell's completion script.

Exit codes: 0 done; 1 done in part, or something was found, as the command's help says; 2 wrong
input or options, or no memory; 130, 143 and 129 ended by Ctrl-C, SIGTERM and SIGHUP; 141 output
unread.
"""
GROUPS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": {"check": check, "show": show, "render": render},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; for the result see `exit_code`."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # the program reports its errors itself
    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(__version__)
        return 0
    return exit_code(lambda: parse(given)())


def cli() -> None:
    """Run a command and exit: the entry point of the console command."""
    warnings.showwarning = show_warning
    sys.exit(main())


def parse(arguments: Sequence[str]) -> Callable[[], Any]:
    """Parse a command line, without the program's name; returns the command with its options.

    Each command has its own parser, so that messages about unknown options refer to that command.
    """
    program, about = _program(), _ABOUT
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


def _program() -> str:
    """The program's name as the user typed it."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("ea-psmnet") else "python -m ea_psmnet"


if __name__ == "__main__":
    cli()
