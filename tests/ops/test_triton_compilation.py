"""The kernels compile for real cards, and fit into them; no card is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia", reason="needs Triton with its compiler for CUDA")

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a block of threads can have, by architecture (CUDA programming guide)."""
SPILLED = 64
"""Bytes of stack a thread that pass for none: registers saved once, outside the loop."""

CASES = [  # C, k, heads, type, channels-last, sizes and strides divide by 16, architecture
    (32, 16, 1, "bfloat16", True, True, 90),
    (32, 16, 2, "float32", True, True, 90),
    (64, 32, 1, "float16", True, True, 90),
    (64, 64, 8, "float32", False, True, 90),
    (20, 10, 1, "bfloat16", False, False, 90),  # odd sizes, no vector of values is aligned
    (64, 64, 1, "float32", True, True, 80),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the compiler says of each kernel in each case."""
    names = ("channels", "keys", "heads", "dtype", "channels_last", "aligned", "arch")
    root = Path(__file__).parents[2]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(root),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    process = subprocess.run(
        [sys.executable, root / "tests" / "triton_compiler.py"],
        input=json.dumps([dict(zip(names, case, strict=True)) for case in CASES]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.slow
def test_every_kernel_compiles_in_every_case(compiled):
    assert {record["kernel"] for record in compiled} == {
        *("_gather_kernel", "_spread_kernel", "_sums_kernel", "_input_kernel"),
    }
    assert len(compiled) == 4 * len(CASES)


@pytest.mark.slow
def test_every_kernel_fits_into_shared_memory(compiled):
    assert not [r for r in compiled if r["shared"] > SHARED[r["arch"]]]


@pytest.mark.slow
def test_no_kernel_keeps_its_sums_outside_registers(compiled):
    assert not [r for r in compiled if r["stack"] > SPILLED]
