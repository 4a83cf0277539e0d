"""torchrun with the program's exit codes: `python -m ea_psmnet.training.launch`, same options.

torchrun itself restarts workers after every failure, even on bad input, and reports it in many
lines. Here an error that a restart cannot fix ends the launch at once, after one line.
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

_FINAL = (2, 130, 143)
"""Exit codes of workers that a restart would not change: bad input, and saved after a signal."""

_SETTINGS = {
    # Otherwise restarted workers share a store with, and read addresses of, those before them.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Seconds to save after SIGTERM; one step on CPUs can take longer than torchrun's 30.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "150",
}


class _Agent(LocalElasticAgent):
    """Does not restart workers if the first failure is final."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and _first(result.failures).exitcode in _FINAL:
            self._remaining_restarts = 0
        return result


def launch() -> int:
    """Run workers like torchrun; returns the exit code of the worker that ended the launch."""
    os.environ.update(_SETTINGS | os.environ)
    api.LocalElasticAgent = _Agent  # type: ignore[misc]
    for room in ("agent.server.api", "multiprocessing.api"):
        logger = logging.getLogger(f"torch.distributed.elastic.{room}")
        logger.setLevel(logging.ERROR)  # hides that signals are passed on
        logger.addFilter(_is_news)
    try:
        run.run(run.parse_args(None))
    except ChildFailedError as error:
        first = _first(error.failures)
        if first.exitcode not in _FINAL:
            print(f"error: a training process died (exit code {first.exitcode}); the reason is "
                  "above; the same command continues the run", file=sys.stderr)  # fmt: skip
            return 1
        return first.exitcode
    except SignalException as error:  # received by this process, which has passed it on
        return 128 + error.sigval
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log line is new: workers report failures with the final codes themselves."""
    return not (isinstance(record.args, tuple) and record.args and record.args[0] in _FINAL)


def _first(failures: Mapping[int, ProcessFailure]) -> ProcessFailure:
    return min(failures.values(), key=lambda failure: failure.timestamp)


if __name__ == "__main__":
    sys.exit(launch())
