"""What one module does for all has no second caller: a new one is a decision."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PATHS = {
    # Confidence is a convex fit of a few numbers, no training.
    "backward passes": (
        r"\.backward\(\)",
        "training/step.py training/memory.py inference/confidence.py",
    ),
    "optimisers": (r"torch\.optim\.\w+\(", "training/step.py inference/confidence.py"),
    "data loaders": (r"\bDataLoader\(", "datasets/workers.py"),
    # JPEG as a change of training samples is decoded where it is made.
    "decoding of images": (
        r"cv2\.im(read|decode)\w*\(",
        "images.py datasets/augment/photometric.py",
    ),
    "files that take their place at once": (r"os\.(replace|rename)\(", "atomic.py"),
    "resident memory": (r"VmRSS|VmHWM|ru_maxrss", "machine.py"),
    "block matching": (r"cv2\.Stereo(SGBM|BM)", "inference/baselines.py"),
    "compiled code": (r"-shared\b|CDLL\(str", "ops/native/__init__.py"),
    "child processes": (
        r"subprocess\.(run|Popen)\(",
        "experiments/own_process.py ops/native/__init__.py training/run_folder.py",
    ),
    "random generators of samples": (r"random\.default_rng\(\[", "training/data.py"),
}
SOURCES = {
    str(path.relative_to(ROOT)).removeprefix("ea_psmnet/"): path.read_text()
    for package in ("ea_psmnet", "datasets")
    for path in (ROOT / package).rglob("*.py")
}


@pytest.mark.parametrize("what", PATHS)
def test_there_is_one_path(what):
    pattern, modules = PATHS[what]
    found = {name for name, text in SOURCES.items() if re.search(pattern, text)}
    assert found == set(modules.split())
