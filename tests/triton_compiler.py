"""Compiles the Triton kernels ahead of time, without a GPU.

A program of its own, as nothing compiles in a process where Triton interprets: reads a list of
cases from standard input, and writes what the compiler said of each, both as JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ea_psmnet.ops.triton import efficient, efficient_backward

LIKE_X = ("x", "out", "grad", "grad_x")
"""Pointers to values of the input's type; all others are float32's."""
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def kernels() -> Iterator[tuple[str, Any, Any]]:
    """Name, module and function of all that the program launches."""
    for module in (efficient, efficient_backward):
        for name, value in vars(module).items():
            if name.endswith("_kernel") and inspect.getmodule(value.fn) is module:
                yield name, module, value


def compile_case(module: Any, kernel: Any, case: dict[str, Any]) -> dict[str, int]:
    """Compile as the program would launch it on (1, C, 1000) values."""
    x = torch.empty(1, case["channels"], 1000, dtype=getattr(torch, case["dtype"]), device="meta")
    _, _, constants = module._plan(x, case["keys"])
    constants["HEADS"] = case["heads"]
    options = {n: constants.pop(n) for n in list(constants) if n not in kernel.arg_names}
    options.pop("HEADS", None)  # where the kernel has none
    ones = ("stride_c", "grad_c", "out_c") if case["channels_last"] else ()
    ones = ones or ("stride_n", "grad_n", "out_n")
    constants |= {name: 1 for name in ones if name in kernel.arg_names}
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else _type(name, case["dtype"])
        # Pointers of torch are aligned; sizes and strides may be.
        if name not in constants and (case["aligned"] or signature[name].startswith("*")):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items()},
        attrs=aligned,
    )
    target = GPUTarget("cuda", case["arch"], 32)
    compiled = triton.compile(source, target=target, options=options)
    return {"shared": compiled.metadata.shared, **_resources(compiled.asm["cubin"])}


def _type(name: str, dtype: str) -> str:
    if name.endswith(("_b", "_c", "_n")) or name in ("positions", "channels", "keys", "span"):
        return "i32"
    return "*" + (TYPES[dtype] if name in LIKE_X else "fp32")


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes of stack that hold what did not fit into them."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"]) + int(found["LOCAL"])}


def main() -> None:
    answers = [
        case | {"kernel": name} | compile_case(module, kernel, case)
        for case in json.load(sys.stdin)
        for name, module, kernel in kernels()
    ]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
