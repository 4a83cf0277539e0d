"""A training run of the tiny preset that dies: `python -m training.dying_run DEATHS ARGUMENTS`.

DEATHS, as `3:raise,start:kill`, has one for each start by torchrun: in the middle of that step, or
before anything is loaded, the last process raises an error, or is killed by SIGKILL. Starts after
these live. Imports are late, so that a death at the start takes no time.
"""

import os
import signal
import sys

RANK, WORLD, START = (
    int(os.environ.get(name, value))
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("TORCHELASTIC_RESTART_COUNT", 0))
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise RuntimeError("made to fail")


def end_at(step, how):
    """End this process between the gradients and the update of a step."""
    from ea_psmnet.training.loop import _Trainer
    from ea_psmnet.training.step import OptimiserStep

    turn, backward = _Trainer._turn, OptimiserStep._backward
    now = []

    def noting(self, current, *arguments):
        now[:] = [current]
        return turn(self, current, *arguments)

    def ending(self, *arguments, **options):
        if now == [step]:
            how()
        return backward(self, *arguments, **options)

    _Trainer._turn, OptimiserStep._backward = noting, ending


def run(arguments):
    """The program's exit code with the network of the tests."""
    from training.tiny import TINY, one_block

    from ea_psmnet.__main__ import main
    from ea_psmnet.models import features
    from ea_psmnet.models.config import PRESETS

    PRESETS["tiny"], features._stage = TINY, one_block
    return main(arguments)


deaths = [death.split(":") for death in sys.argv[1].split(",") if death]
if len(deaths) > START and RANK == WORLD - 1:
    moment, way = deaths[START]
    how = {"kill": die, "raise": fail}[way]
    if moment == "start":
        how()
    end_at(int(moment), how)
sys.exit(run(sys.argv[2:]))
