"""`info`: versions, devices, memory and weights on this machine."""

from __future__ import annotations

from typing import Any

from ea_psmnet import __version__


def info(*, json: bool = False) -> None:
    """Show versions, devices, memory, compiled code and bundled weights, for a bug report.

    Args:
        json: Print JSON.
    """
    from json import dumps

    facts = _facts()
    if json:
        print(dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        parts = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        print(f"{name:{width}}  {', '.join(parts) if isinstance(parts, list) else parts}")


def _facts() -> dict[str, Any]:
    """Facts by name: text, or text by name."""
    import torch

    from ea_psmnet.machine import available_memory, choose_device, device_name, has_fast_bfloat16
    from ea_psmnet.ops.native import compiled_libraries
    from ea_psmnet.tables import format_bytes
    from ea_psmnet.training.run_folder import describe_environment

    known = describe_environment()
    name = choose_device("auto")
    device = torch.device(name)
    return {
        "version": __version__,
        "revision": known["revision"] or "not a clone",
        "python": known["python"],
        "system": known["system"],
        "libraries": {k: v or "not installed" for k, v in known["libraries"].items()},
        "processor": f"{known['processor']}, {known['cores']} cores, {known['threads']} threads",
        "device": name if name == "cpu" else f"{name}: {device_name(device)}",
        "cuda": known["cuda"] or "none",
        "precision": "bfloat16" if has_fast_bfloat16(name) else "float32",
        "free memory": format_bytes(available_memory(device)),
        "compiled code": {
            k: "in use" if v else "not in use" for k, v in compiled_libraries().items()
        },
        "weights": _weights(),
    }


def _weights() -> dict[str, str]:
    """Bundled weights, and whether their files match their descriptions."""
    from ea_psmnet.files import content_hash
    from ea_psmnet.models.weights import BUNDLED, read_card

    found = {}
    for path in sorted(BUNDLED.glob("*.safetensors")):
        try:
            stated = read_card(path).get("sha256")
        except ValueError:
            found[path.stem] = "damaged description"
            continue
        same = stated == content_hash(path)
        found[path.stem] = "intact" if same else "damaged" if stated else "without description"
    return found
