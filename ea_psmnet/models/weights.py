"""Weights on disk: safetensors that carry their configuration, and original PSMNet checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ea_psmnet.files import atomic_path
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.widen import widen

__all__ = [
    "BUNDLED",
    "find_weights",
    "import_original",
    "load_into",
    "load_model",
    "load_state",
    "save_model",
]

BUNDLED = Path(__file__).parents[2] / "checkpoints"
"""Folder of the weights that come with the project."""

_HEADER = "ea_psmnet"

_SHARED_NAMES = (
    ("feature_extraction.firstconv.", "features.stem."),
    *((f"feature_extraction.layer{i + 1}.", f"features.stages.{i}.") for i in range(4)),
    *((f"feature_extraction.branch{i + 1}.1.", f"features.pyramid.{i}.0.") for i in range(4)),
    ("feature_extraction.lastconv.", "features.fuse."),
    ("dres0.", "aggregation.stem."),
    ("dres1.", "aggregation.residuals.0."),
)
_HOURGLASS_PARTS = (
    ("conv1.", "down1."),
    ("conv2.", "refine1."),
    ("conv3.", "down2."),
    ("conv4.", "refine2."),
    ("conv5.", "up2."),
    ("conv6.", "up1."),
)
ORIGINAL_NAMES: dict[str, str] = dict(
    (
        *_SHARED_NAMES,
        *(
            (f"dres{i + 2}.{theirs}", f"aggregation.hourglasses.{i}.{ours}")
            for i in range(3)
            for theirs, ours in _HOURGLASS_PARTS
        ),
        *((f"classif{i + 1}.", f"aggregation.classifiers.{i}.") for i in range(3)),
        *(
            (f"dres{i + 1}.{layer}.", f"aggregation.residuals.{i}.{layer}.")
            for i in (1, 2, 3)
            for layer in (0, 2)
        ),
        ("classify.", "aggregation.classifiers.0."),
    )
)
"""Prefixes of the original's parameter names and ours; `downsample` is renamed besides."""


def save_model(path: Path | str, model: PSMNet, *, half: bool = False) -> None:
    """Write weights and configuration as safetensors, atomically.

    Args:
        path: the file to write.
        model: the network.
        half: store parameters in float16; batch statistics stay float32.
    """
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (tensor.half() if half and name in parameters else tensor).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    header = {_HEADER: json.dumps(model.config.to_dict(), sort_keys=True)}
    with atomic_path(Path(path)) as temporary:
        # Not `save_file`: it makes files that only their owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata=header))


def find_weights(path: Path | str) -> Path:
    """A file of weights, a folder of one as a run's, or bundled ones by their bare name.

    Raises:
        FileNotFoundError: none of these; the message lists the bundled ones, as ea-psmnet-small.
        ValueError: a folder with several files of weights, none of which is model.safetensors.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        return _weights_in(path)
    bundled = BUNDLED / f"{path}.safetensors"
    if path.name == str(path) and bundled.is_file():
        return bundled
    names = sorted(file.stem for file in BUNDLED.glob("*.safetensors"))
    known = f"; bundled are {', '.join(names)}" if names else ""
    raise FileNotFoundError(f"{path}: no such checkpoint{known}")


def _weights_in(folder: Path) -> Path:
    """The folder's weights: of a run those it ended with, else the only ones."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".tar"))
    if not found:
        raise FileNotFoundError(f"{folder}: this folder holds no weights (.safetensors or .tar)")
    final = folder / "model.safetensors"
    if final not in found and len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: holds several weights: name one of {names}")
    return final if final in found else found[0]


def load_model(
    path: Path | str,
    *,
    max_disparity: int | None = None,
    align_corners: bool | None = None,
    peak_reach: int | None = None,
    attention: bool = True,
) -> PSMNet:
    """Read a network in evaluation mode, on the CPU, in float32.

    Args:
        path: a `.safetensors` file of `save_model`, an original PSMNet `.tar`, a folder of one, or
            the name of bundled weights.
        max_disparity: search another range than the one trained with.
        align_corners: overrides the file's; original checkpoints trained with torch 0.4 (2018)
            need true, later ones false, which is what is taken for them by default.
        peak_reach: overrides the file's; see `PSMNetConfig`.
        attention: false leaves its attention modules out, to see what they are worth.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this network; the message says what is wrong.
    """
    config, state = load_state(path) if attention else _bare(*load_state(path))
    given: dict[str, Any] = {
        "max_disparity": max_disparity,
        "align_corners": align_corners,
        "peak_reach": peak_reach,
    }
    config = replace(config, **{name: v for name, v in given.items() if v is not None})
    try:
        model = build_model(config)
    except TypeError as error:
        raise ValueError(f"{path}: its configuration is damaged ({error})") from None
    _load_strictly(model, state, path)
    return model.eval()


def load_state(path: Path | str) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    """Configuration and float32 state of a checkpoint of either kind; raises as `load_model`."""
    path = find_weights(path)
    config, state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_tar(path)
    return config, {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _read_safetensors(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise ValueError(f"{path}: these weights are not an EA-PSMNet's: no configuration inside")
    try:
        return PSMNetConfig.from_dict(json.loads(header)), state
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its configuration is damaged ({error})") from None


def _read_tar(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the unpickler raises whatever odd bytes lead it to
        raise ValueError(
            f"{path}: neither safetensors nor a checkpoint of tensors that torch reads safely"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()
    ):
        raise ValueError(f"{path}: holds no state_dict of tensors")
    try:
        return import_original(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def import_original(state: dict[str, Tensor]) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    """Translate an original PSMNet's state to our names.

    Args:
        state: as saved by PSMNet's code, stacked hourglass or basic, with or without `module.`.

    Returns:
        The configuration (disparity range 192, `align_corners` false: the file does not tell) and
        the renamed state.

    Raises:
        ValueError: a name that an original PSMNet does not have.
    """
    renamed = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        theirs = next((prefix for prefix in ORIGINAL_NAMES if plain.startswith(prefix)), None)
        if theirs is None:
            raise ValueError(f"'{name}' is no parameter of an original PSMNet")
        ours = ORIGINAL_NAMES[theirs] + plain.removeprefix(theirs)
        renamed[ours.replace(".downsample.", ".shortcut.")] = tensor
    basic = any(".classify." in f".{name}" for name in state)
    config = PSMNetConfig(aggregation="basic" if basic else "hourglass")
    return config, renamed


def load_into(model: PSMNet, path: Path | str, *, attention: bool = True) -> None:
    """Start a network from a checkpoint of either kind.

    Attention modules that the checkpoint lacks keep their initial state, the identity; one of a
    narrower network starts a wider one as the same function (see `widen`); everything else must
    fit. Raises as `load_model`.

    Args:
        model: the network.
        path: of the checkpoint.
        attention: whether to take the checkpoint's attention modules, if it has some.
    """
    config, state = load_state(path)
    if not attention:
        config, state = _bare(config, state)
    if model.config.width > config.width:
        try:
            state = widen(config, state, model)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    _load_strictly(model, _attention(model.state_dict(), are=True) | state, path)


def _bare(config: PSMNetConfig, state: dict[str, Tensor]) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    """A network without its attention modules."""
    bare = replace(config, attention="none", attention_sites=(), attention_options={})
    return bare, _attention(state, are=False)


def _attention(state: dict[str, Tensor], *, are: bool) -> dict[str, Tensor]:
    """The tensors that are attention modules', or those that are not."""
    return {name: t for name, t in state.items() if (".attention." in name) == are}


def _load_strictly(model: PSMNet, state: dict[str, Tensor], path: Path | str) -> None:
    """Load every tensor or say in one line what does not fit."""
    expected = model.state_dict()
    # Torch before 0.4.1 did not count batches; the count changes nothing in evaluation.
    counters = {n: t for n, t in expected.items() if n.endswith("num_batches_tracked")}
    state = counters | state
    problems = {
        "lacks": expected.keys() - state.keys(),
        "has a surplus": state.keys() - expected.keys(),
        "has another shape of": {
            n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape
        },
        "has NaN or infinity in": {n for n, t in state.items() if not t.isfinite().all()},
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path}: does not fit the network: {problem} '{min(names)}'{more}")
    model.load_state_dict(state)
