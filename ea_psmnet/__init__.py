"""EA-PSMNet: stereo depth with efficient attention in the cost volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# By default OpenMP's threads spin while they wait for each other, and burn what others need. Asleep
# at once they would start late, so GNU's spin for about 0.1 ms first
# (docs/results/process-settings.md). OpenMP reads this once, when torch loads it: a program that
# imports torch before this package sets it in its environment. Processes started from here inherit
# it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

# The readers lie beside the package, so that a link shows them inside it, where a wheel has them. A
# checkout may be without symbolic links.
_HERE = Path(__file__).parent
if not (_HERE / "datasets").is_dir():
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from ea_psmnet.calibration import Calibration
    from ea_psmnet.calibration_files import read_calibration
    from ea_psmnet.inference.matcher import StereoMatcher
    from ea_psmnet.inference.result import StereoResult
    from ea_psmnet.machine import keep_freed_memory
    from ea_psmnet.models.config import PSMNetConfig
    from ea_psmnet.models.psmnet import PSMNet, build_model

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "PSMNet",
    "PSMNetConfig",
    "StereoMatcher",
    "StereoResult",
    "__version__",
    "build_model",
    "keep_freed_memory",
    "read_calibration",
]

_HOMES = {
    "Calibration": "ea_psmnet.calibration",
    "read_calibration": "ea_psmnet.calibration_files",
    "PSMNet": "ea_psmnet.models.psmnet",
    "PSMNetConfig": "ea_psmnet.models.config",
    "StereoMatcher": "ea_psmnet.inference.matcher",
    "StereoResult": "ea_psmnet.inference.result",
    "build_model": "ea_psmnet.models.psmnet",
    "keep_freed_memory": "ea_psmnet.machine",
}


def __getattr__(name: str) -> Any:
    # Late, so that `python -m ea_psmnet --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'ea_psmnet' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
