"""A training run of the tiny preset that kills itself: `python -m training.dying_run STEP ...`.

In the middle of STEP the last process dies by SIGKILL, unless torchrun has restarted it.
"""

import os
import signal
import sys

from training.tiny import TINY

from ea_psmnet.__main__ import main
from ea_psmnet.models.config import PRESETS
from ea_psmnet.training.loop import _Trainer
from ea_psmnet.training.step import OptimiserStep

PRESETS["tiny"] = TINY
RANK, WORLD = (int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1)))
FIRST = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def die_at(step):
    """Kill the last process between the gradients and the update of a step."""
    turn, backward = _Trainer._turn, OptimiserStep._backward
    now = []

    def noting(self, current, *arguments):
        now[:] = [current]
        return turn(self, current, *arguments)

    def dying(self, *arguments, **options):
        if now == [step]:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, *arguments, **options)

    _Trainer._turn, OptimiserStep._backward = noting, dying


if FIRST and RANK == WORLD - 1:
    die_at(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
