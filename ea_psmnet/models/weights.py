"""Weights on disk: safetensors with their configuration, and original PSMNet checkpoints."""

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
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from ea_psmnet.attention import VolumeAttention, build_attention
from ea_psmnet.console import is_out_of_memory
from ea_psmnet.files import atomic_path
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.records import parse_record, read_record

_PACKAGE = Path(__file__).parents[1]

BUNDLED = next(
    (p for p in (_PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints") if p.is_dir()),
    _PACKAGE / "checkpoints",
)
"""Folder of the weights that are bundled: inside the package, or beside it in a clone."""

_HEADER = "ea_psmnet"

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_HOURGLASS_NAMES = {
    **{"conv1": "down1", "conv2": "refine1", "conv3": "down2", "conv4": "refine2"},
    **{"conv5": "up2", "conv6": "up1"},
}
ORIGINAL_NAMES = {
    "feature_extraction.firstconv.": "features.stem.",
    **{f"feature_extraction.layer{i + 1}.": f"features.stages.{i}." for i in range(4)},
    **{f"feature_extraction.branch{i + 1}.1.": f"features.pyramid.{i}.0." for i in range(4)},
    "feature_extraction.lastconv.": "features.fuse.",
    "dres0.": "aggregation.stem.",
    "dres1.": "aggregation.residuals.0.",
    **{
        f"dres{i + 2}.{theirs}.": f"aggregation.hourglasses.{i}.{ours}."
        for i in range(3)
        for theirs, ours in _HOURGLASS_NAMES.items()
    },
    **{f"classif{i + 1}.": f"aggregation.classifiers.{i}." for i in range(3)},
    **{
        f"dres{i + 1}.{layer}.": f"aggregation.residuals.{i}.{layer}."
        for i in (1, 2, 3)
        for layer in (0, 2)
    },
    "classify.": "aggregation.classifiers.0.",
}
"""Prefixes of the original's parameter names, and ours; `downsample` becomes `shortcut` besides."""

_SPREAD = 0.5
"""Standard deviation of the shares of a channel's copies, whose mean is 1."""


class NotFiniteError(ValueError):
    """Weights, or the output of a network, have NaN or infinity."""


# Finding ------------------------------------------------------------------------------------------


def find_weights(path: Path | str) -> Path:
    """Find weights by file, by a folder that holds one file (as of a run), or by bundled name.

    Raises:
        FileNotFoundError: There are none; the message lists the names of bundled weights.
        ValueError: A folder has several files of weights, and none is model.safetensors.
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
    """The weights in a folder: the final ones of a run, otherwise the only ones."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".tar"))
    if not found:
        raise FileNotFoundError(f"{folder}: this folder holds no weights (.safetensors or .tar)")
    final = folder / "model.safetensors"
    if final not in found and len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: holds several weights: name one of {names}")
    return final if final in found else found[0]


# Writing and reading ------------------------------------------------------------------------------


def read_card(path: Path | str) -> dict[str, Any]:
    """Read the description of weights: `NAME.json` beside their file, or nothing if there is none.

    Bundled weights have one: how and on what they were trained, their hash, and errors by kind of
    pair. For the path see `find_weights`.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: The description is damaged.
    """
    card = find_weights(path).with_suffix(".json")
    return read_record(card, dict[str, Any]) if card.is_file() else {}


def save_model(path: Path | str, model: PSMNet, *, half: bool = False) -> None:
    """Write weights and configuration as safetensors, atomically.

    With `half`, parameters are stored in float16; batch statistics stay in float32.
    """
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (tensor.half() if half and name in parameters else tensor).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    header = {_HEADER: json.dumps(model.config.to_dict(), sort_keys=True)}
    with atomic_path(Path(path)) as temporary:
        # Not `save_file`, whose files only their owner can read.
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
        path: A `.safetensors` file of `save_model`, an original PSMNet `.tar`, a folder that holds
            one, or the name of bundled weights.
        max_disparity: Search another range of disparities than in training.
        align_corners: Override the file's value. Original checkpoints trained with torch 0.4 (2018)
            need true, later ones false, which is their default.
        peak_reach: Override the file's value; see `PSMNetConfig`.
        attention: False leaves the attention modules out, to measure their contribution.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint of this network; the message says why.
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
    """Read configuration and float32 state of a checkpoint of either kind, which fit each other.

    Files that do not fit are refused before they take memory: the network is first laid out without
    data.

    Raises:
        FileNotFoundError: There is no such file.
        NotFiniteError: The weights have NaN or infinity.
        ValueError: The file is not a checkpoint of this network; the message says why.
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
    """Skips `torch.nn.init`, which takes seconds on tensors without data."""

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
    except Exception as error:  # any error that options of a file cause in mechanisms or torch
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: its configuration is damaged ({reason})") from None


def _read_safetensors(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own, the system's, and torch's for types it does not have
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header is None:
        raise ValueError(
            f"{path}: these are not EA-PSMNet weights: the file holds no configuration"
        )
    return parse_record(header, PSMNetConfig, f"{path}: its configuration is damaged"), state


def _read_tar(path: Path) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # Torch does not compress: a compressed file could grow without bound.
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("compressed")
        with warnings.catch_warnings(action="ignore"):  # about layouts that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise any error on malformed bytes
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
        state: State as saved by PSMNet's code, stacked hourglass or basic, with or without the
            prefix `module.`.

    Returns:
        The configuration (disparity range 192 and `align_corners` false, which the file does not
        state) and the renamed state.

    Raises:
        ValueError: A name that an original PSMNet does not have.
    """
    renamed = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        theirs = next((prefix for prefix in ORIGINAL_NAMES if plain.startswith(prefix)), None)
        if theirs is None:
            raise ValueError(f"'{name}' is not a parameter of the original PSMNet")
        ours = ORIGINAL_NAMES[theirs] + plain.removeprefix(theirs)
        renamed[ours.replace(".downsample.", ".shortcut.")] = tensor
    basic = any(".classify." in f".{name}" for name in state)
    config = PSMNetConfig(aggregation="basic" if basic else "hourglass")
    return config, renamed


def load_into(model: PSMNet, path: Path | str, *, attention: bool = True) -> None:
    """Initialise a network from a checkpoint of either kind.

    Attention modules that the checkpoint lacks keep their initial state, the identity. A checkpoint
    of a narrower network initialises a wider one as the same function (see `widen`). Everything
    else must fit, except options of attention that no parameter depends on, such as heads. For
    `attention` and for errors see `load_model`.
    """
    config, state = load_state(path)
    if not attention:
        config, state = _bare(config, state)
    if config.attention not in ("none", model.config.attention):
        raise ValueError(
            f"{path}: has {config.attention} attention, and the network {model.config.attention}"
        )
    if model.config.width > config.width:
        try:
            state = widen(config, state, model)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    _load_strictly(model, _attention(model.state_dict(), are=True) | state, path)


def _bare(config: PSMNetConfig, state: dict[str, Tensor]) -> tuple[PSMNetConfig, dict[str, Tensor]]:
    """Configuration and state of a network without its attention modules."""
    bare = replace(config, attention="none", attention_sites=(), attention_options={})
    return bare, _attention(state, are=False)


def _attention(state: dict[str, Tensor], *, are: bool) -> dict[str, Tensor]:
    """The tensors of attention modules, or those of all other modules."""
    return {name: t for name, t in state.items() if (".attention." in name) == are}


def _load_strictly(model: PSMNet, state: dict[str, Tensor], path: Path | str) -> None:
    """Load every tensor, or raise an error that states in one line what does not fit."""
    expected = model.state_dict()
    # Torch before 0.4.1 did not count batches; the count has no effect in evaluation.
    counters = {n: t for n, t in expected.items() if n.endswith("num_batches_tracked")}
    model.load_state_dict(_fitting(expected, counters | state, path))


def _fitting(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], path: Path | str
) -> dict[str, Tensor]:
    """Return the state if it has the names, shapes and types of the expected tensors.

    Raises:
        ValueError: It does not; the message states in one line what does not fit.
    """
    shared = expected.keys() & state.keys()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "lacks": expected.keys() - state.keys() - counters,
        "has an unexpected": state.keys() - expected.keys(),
        "has the wrong shape for": {n for n in shared if expected[n].shape != state[n].shape},
        "has no dense numbers of its type for": {
            n for n in shared if not _is_plain(state[n], expected[n])
        },
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path}: does not fit the network: {problem} '{min(names)}'{more}")
    return state


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, and of a type that can become the expected one."""
    types = _FLOATING if expected.is_floating_point() else (expected.dtype,)
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.dtype in types


# Widening -----------------------------------------------------------------------------------------


def widen(config: PSMNetConfig, state: dict[str, Tensor], network: PSMNet) -> dict[str, Tensor]:
    """Initialise a wide network as the same function as a narrow one, by repeating channels.

    Net2WiderNet (Chen et al., "Net2Net", ICLR 2016, equation 1): channel c becomes channels k c to
    k c + k - 1, and layers that read them weight their k inputs so that these add up to the
    previous input; disparities stay the same but for rounding. The shares are random, because equal
    copies would stay equal in training. Only attention that `survives_repetition` can be widened.

    Args:
        config: Configuration of the narrow network.
        state: State of the narrow network.
        network: The wide network, k times as wide, whose shapes are used.

    Returns:
        A state for `network`, with a tensor for each in `state`.

    Raises:
        ValueError: k is not a whole number, or repetition would change the function.
    """
    width = network.config.width
    if width % config.width:
        raise ValueError(f"width {config.width} can be widened to multiples, not to {width}")
    if config.normalisation != "batch":
        raise ValueError("only networks with batch normalisation can be widened")
    if config.attention != "none" and not _survives_repetition(config):
        raise ValueError(
            f"attention '{config.attention}' changes when channels are repeated: only efficient "
            "attention with softmax and without positions can be widened"
        )
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    inputs = {f"{name}.weight": _input_dimension(m) for name, m in network.named_modules()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: _repeat(tensor, shapes.get(name, tensor.shape), inputs.get(name), generator)
        for name, tensor in state.items()
    }


def _survives_repetition(config: PSMNetConfig) -> bool:
    options = config.attention_options
    with torch.device("meta"):
        module = build_attention(config.attention, config.inner_channels, **options)
    return isinstance(module, VolumeAttention) and module.survives_repetition


def _input_dimension(module: nn.Module) -> int | None:
    """The dimension of a convolution's weight that runs over its inputs."""
    if not isinstance(module, _ConvNd):
        return None
    return 0 if isinstance(module, _ConvTransposeNd) else 1


def _repeat(
    tensor: Tensor, shape: torch.Size, inputs: int | None, generator: torch.Generator
) -> Tensor:
    """Repeat a tensor along each dimension that is larger in `shape`."""
    for dimension, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        copies = new // old
        if copies > 1:
            tensor = tensor.repeat_interleave(copies, dimension)
            if dimension == inputs:
                tensor = tensor * _shares(tensor, dimension, copies, generator)
    return tensor


def _shares(tensor: Tensor, dimension: int, copies: int, generator: torch.Generator) -> Tensor:
    """Random factors; each group of `copies` along `dimension` adds up to 1."""
    noise = torch.randn(tensor.shape, generator=generator).unflatten(dimension, (-1, copies))
    noise -= noise.mean(dimension + 1, keepdim=True)
    return ((1 + _SPREAD * noise) / copies).flatten(dimension, dimension + 1)
