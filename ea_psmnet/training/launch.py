"""torchrun with the program's exit codes: `python -m ea_psmnet.training.launch`, same options.

torchrun itself starts workers again whatever has ended them, bad input too, and tells of it in many
lines. Here what the same command cannot mend ends the launch at once, after the program's one line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from torch.distributed import run
from torch.distributed.elastic.agent.server import WorkerGroup
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

__all__ = ["launch"]

_FINAL = (2, 130, 143)
"""Exit codes of workers that starting again would not change: bad input, and saved by a signal."""

_SETTINGS = {
    # Else torchrun lends restarted workers the store of those before, with addresses of theirs.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Seconds to save in at SIGTERM; a step on CPUs alone can take torchrun's 30.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "150",
}


class _Agent(LocalElasticAgent):
    """Starts no workers again after the first to end has ended for good."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and _first(result.failures).exitcode in _FINAL:
            self._remaining_restarts = 0
        return result


def launch() -> int:
    """Run workers as torchrun does; returns the exit code of the one that has ended the launch."""
    os.environ.update(_SETTINGS | os.environ)
    api.LocalElasticAgent = _Agent  # type: ignore[misc]
    for room in ("agent.server.api", "multiprocessing.api"):
        logger = logging.getLogger(f"torch.distributed.elastic.{room}")
        logger.setLevel(logging.ERROR)  # not that signals are passed on
        logger.addFilter(_is_news)
    try:
        run.run(run.parse_args(None))
    except ChildFailedError as error:
        first = _first(error.failures)
        if first.exitcode not in _FINAL:
            print(f"error: a training process has died (exit code {first.exitcode}); what ended it "
                  "is told above, and the same command goes on", file=sys.stderr)  # fmt: skip
            return 1
        return first.exitcode
    except SignalException as error:  # to this process, which has passed it on
        return 128 + error.sigval
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log line tells what the worker has not: all but that it failed with these codes."""
    return not (isinstance(record.args, tuple) and record.args and record.args[0] in _FINAL)


def _first(failures: Mapping[int, ProcessFailure]) -> ProcessFailure:
    return min(failures.values(), key=lambda failure: failure.timestamp)


if __name__ == "__main__":
    sys.exit(launch())
