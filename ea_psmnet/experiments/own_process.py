"""Programs in fresh processes, which end with the process that started them.

The module itself runs a program: `python -m ea_psmnet.experiments.own_process PARENT PROGRAM ...`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ea_psmnet.machine import end_with_parent, ending_children


def run_program(
    program: str,
    arguments: Sequence[str] = (),
    *,
    input: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a module or a script in a fresh process, which ends whenever and however this one does.

    When Ctrl-C or SIGTERM ends this process, the other one gets SIGTERM and the time that it needs,
    for example to save; a second signal kills it.

    Args:
        program: Name of a module, as for `python -m`, or path of a script, which ends in `.py`.
        arguments: Arguments of its command line.
        input: Text for its standard input.
        timeout: Seconds after which it is killed.
        options: Further keyword arguments of `subprocess.Popen`.

    Raises:
        subprocess.TimeoutExpired: It did not end in time.
    """
    tied = [sys.executable, "-m", "ea_psmnet.experiments.own_process", str(os.getpid())]
    command = [*tied, program, *arguments]
    stdin = None if input is None else subprocess.PIPE
    with ending_children(), subprocess.Popen(command, stdin=stdin, text=True, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        except BaseException:
            process.terminate()
            try:
                process.wait()
            finally:
                process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _main(parent: str, program: str, *arguments: str) -> None:
    end_with_parent(int(parent))
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
