"""Weights on disk: safetensors that carry their configuration, and original PSMNet checkpoints."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ea_psmnet.console import is_out_of_memory
from ea_psmnet.files import atomic_path
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weight_files import find_weights
from ea_psmnet.models.widen import widen
from ea_psmnet.records import parse_record

__all__ = [
    "NotFiniteError",
    "check_finite",
    "import_original",
    "load_into",
    "load_model",
    "load_state",
    "save_model",
]

_HEADER = "ea_psmnet"

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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


class NotFiniteError(ValueError):
    """Weights, or what a network made of them, have NaN or infinity."""


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
    model = build_model(replace(config, **{n: v for n, v in given.items() if v is not None}))
    _load_strictly(model, state, path)
    return model.eval()


def load_state(path: Path | str) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    """Configuration and float32 state of a checkpoint of either kind, which fit each other.

    What does not is refused before it takes memory: the network is laid out without data first.

    Raises:
        FileNotFoundError: no such file.
        NotFiniteError: there is NaN or infinity in it.
        ValueError: not a checkpoint of this network; the message says what is wrong.
    """
    path = find_weights(path)
    config, state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_tar(path)
    state = _fitting(_layout(config, path), state, path)
    state = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    check_finite(state, str(path))
    return config, state


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a NotFiniteError that names `source` and the first tensor with NaN or infinity."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise NotFiniteError(f"{source}: has NaN or infinity in '{min(broken)}'{more}")


class _Uninitialised(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: on tensors without data it takes torch seconds."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), options: Any = None
    ) -> Any:
        if getattr(function, "__module__", "") == nn.init.__name__:
            return args[0] if args else options["tensor"]
        return function(*args, **(options or {}))


def _layout(config: PSMNetConfig, path: Path | str) -> dict[str, Tensor]:
    """The tensors that a network has, without their data."""
    try:
        with torch.device("meta"), _Uninitialised():
            return build_model(config).state_dict()
    except Exception as error:  # whatever options of a file lead mechanisms and torch to
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: its configuration is damaged ({reason})") from None


def _read_safetensors(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own, the system's, and torch's for types that it lacks
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise ValueError(f"{path}: these weights are not an EA-PSMNet's: no configuration inside")
    return parse_record(header, PSMNetConfig, f"{path}: its configuration is damaged"), state


def _read_tar(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # Torch does not compress: what is would grow without bound.
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("compressed")
        with warnings.catch_warnings(action="ignore"):  # of layouts that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever odd bytes lead it to
        if is_out_of_memory(error):
            raise
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
    model.load_state_dict(_fitting(expected, counters | state, path))


def _fitting(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], path: Path | str
) -> dict[str, Tensor]:
    """The state, if it has the names, shapes and types of tensors that are expected.

    Raises:
        ValueError: it has not; the message says in one line what does not fit.
    """
    shared = expected.keys() & state.keys()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "lacks": expected.keys() - state.keys() - counters,
        "has a surplus": state.keys() - expected.keys(),
        "has another shape of": {n for n in shared if expected[n].shape != state[n].shape},
        "has no plain numbers in": {n for n in shared if not _is_plain(state[n], expected[n])},
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path}: does not fit the network: {problem} '{min(names)}'{more}")
    return state


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Whether a tensor has data, all of it, in a type that can become the expected one."""
    types = _FLOATING if expected.is_floating_point() else (expected.dtype,)
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.dtype in types
